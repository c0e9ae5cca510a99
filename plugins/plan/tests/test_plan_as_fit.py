"""A plan is of the run that `fit` makes of the same words, and refuses what `fit` refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_plan import workload
from lightning_ft_plan.command import make
from lightning_ft_plan.machine import Target
from lightning_ft_plan.planning import Planning
from lightning_ft_plan.scene import has_dropout
from lightning_ft_plan.testing import by_name, only, planned, requested, rows_of, sixty_rows, untimed  # noqa: F401  # fixtures

from lightning_ft.cli import main
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path


def planning_of(model: Path, data: Path, **options: Any) -> Planning:
    return Planning(requested(model, data, batch_tokens=512, **options), Target("cpu", 8 * 10**9, "auto"), lambda line: None)


@pytest.mark.parametrize(
    ("given", "of_method", "shared"),
    [
        ({}, {}, True), ({}, {"dropout": 0.1}, False), ({"dropout": 0.1}, {}, False), ({"dropout": 0.0}, {}, True),
        ({"neftune_noise_alpha": 5.0}, {}, False),
    ],
)  # fmt: skip
def test_what_all_rows_begin_with_is_forecast_once(
    given: dict[str, Any], of_method: dict[str, Any], shared: bool, rows: Path, tmp_path: Path
) -> None:
    """As `fit` computes it: where nothing drops, neither the model nor what the method adds."""
    planning = planning_of(tiny_backbone_folder(tmp_path / "model"), rows, **given)
    batch = planning._load_of(registry().methods["lora"].cls(**of_method)).step.micro[0]
    assert (batch.shared is not None) == shared
    if batch.shared is not None:
        assert len(batch.shared.keep) < 0.8 * batch.input_ids.numel()


def test_a_models_own_dropout_is_that_of_the_plan(rows: Path, tmp_path: Path) -> None:
    """GPT-2's is 0.1; Llama has none."""
    folder = tiny_backbone_folder(tmp_path / "gpt2", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1}))
    assert not planning_of(folder, rows).shares
    without = planning_of(folder, rows, dropout=0.0)
    assert without.shares
    assert not has_dropout(without.scene)


@rows_of("lora")
@pytest.mark.usefixtures("only", "untimed")
def test_a_dropout_takes_its_masks(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (tiny_backbone_folder(tmp_path / "model"), "--data", rows, "--precision", "fp32", "--packing", "off")
    plain, dropped = (
        by_name(planned(capsys, *words, *more))["lora"]["parts"]["activations"] for more in ((), ("--dropout", "0.1"))
    )
    assert dropped > plain


@rows_of("lora")
@pytest.mark.usefixtures("only", "untimed")
def test_small_gradients_are_numbers(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimiser that decomposes them would end with whatever lies in memory."""
    import torch

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # what is empty is NaN
    try:
        words = (tiny_backbone_folder(tmp_path / "model"), "--data", rows, "--precision", "fp32", "--optimizer", "GaLore")
        row = by_name(planned(capsys, *words))["lora"]
    finally:
        torch.use_deterministic_algorithms(before)
    assert row["verdict"] == "fits", row["reason"]


@rows_of("lora", "full")
@pytest.mark.usefixtures("only")
def test_a_step_that_cannot_be_timed_is_told(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(Planning, "_speed", fails)
    found = planned(capsys, tiny_backbone_folder(tmp_path / "model"), "--data", rows)
    assert "RuntimeError: no such operator" in by_name(found)["lora"]["reason"]
    assert found["recommendation"]["row"] is None
    assert "there is no forecast" in found["recommendation"]["reasons"][-1]


@pytest.mark.parametrize(("options", "steps"), [({}, None), ({"max_steps": 200}, 200), ({"max_steps": 10**6}, None)])
def test_steps_of_a_file_that_is_read_in_part_are_those_of_the_whole(
    options: dict[str, int], steps: int | None, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write_text(rows.read_text() * 20)
    model = tiny_backbone_folder(tmp_path / "model")
    whole = planning_of(model, rows, batch_size=4, epochs=2)
    every = whole._load(packed=whole.packs, shared=False).steps
    monkeypatch.setattr(workload, "SAMPLED_FROM", 1)
    monkeypatch.setattr(workload, "SAMPLE", 100)
    part = planning_of(model, rows, batch_size=4, epochs=2, **options)
    found = part._load(packed=part.packs, shared=False).steps
    assert every > 200
    assert found == (steps if steps is not None else pytest.approx(every, rel=0.15))


def test_a_stream_has_the_steps_that_it_is_told_and_the_rows_of_its_files(rows: Path, tmp_path: Path) -> None:
    planning = planning_of(tiny_backbone_folder(tmp_path / "model"), rows, stream=20, max_steps=77)
    assert planning._load(packed=planning.packs, shared=False).steps == 77
    trained = len(planning.work.prepared.tables["train"])
    assert trained <= 20
    assert planning.work.trained_rows == pytest.approx(trained * 3, rel=0.1), "of 60 rows"


def test_validation_batches_have_the_rows_that_they_are_given(rows: Path, tmp_path: Path) -> None:
    planning = planning_of(tiny_backbone_folder(tmp_path / "model"), rows, eval_batch_size=2)
    validation = planning._load(packed=False, shared=False).validation
    assert validation is not None
    assert len(validation.rows) == 2


def test_processes_of_a_cpu_divide_its_memory_before_batches_are_sized(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []

    def noted(config: Any, kind: str, memory: int | None, **_: Any) -> int:
        seen.append(memory)
        return 512

    monkeypatch.setattr(workload, "micro_tokens", noted)
    request = requested(tiny_backbone_folder(tmp_path / "model"), rows, devices=2)
    planning = Planning(request, Target("cpu", 8 * 10**9, "auto"), lambda line: None)
    planning._load(packed=False, shared=False)
    assert seen == [planning.target.memory] == [4 * 10**9]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_tokens", "8"], "Expected --batch_tokens of at least"),
        (["--early_stopping", "3", "--split", "[0.9, 0, 0.1]"], "Expected validation rows for --early_stopping"),
        (["--trainer.no_such_argument", "1"], "no_such_argument"),
        (["--retention", "nothing.jsonl"], "Expected --retention to be a file of rows, general or none"),
    ],
)
def test_what_fit_refuses_is_refused(
    words: list[str], message: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = tiny_backbone_folder(tmp_path / "model"), []
    for command in (["plan"], ["fit", "--output", str(tmp_path / "run")]):
        assert main([*command, "--model", str(folder), "--data", str(rows), *words]) == 2
        said.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert message in said[0]
    assert said[0] == said[1]


@rows_of("lora", "full")
@pytest.mark.usefixtures("only", "untimed")
def test_options_of_base_weights_are_no_part_of_a_command_without(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rate is usual for all weights, which `--method full` names, and not for the adapter, which is recommended."""
    words = ("--method", "full", "--master_weights", "split", "--precision", "bf16", "--learning_rate", "2e-6")
    found = planned(capsys, tiny_backbone_folder(tmp_path / "model"), "--data", rows, *words)
    assert found["recommendation"]["row"] == "lora"
    assert "--master_weights" not in found["command"]
    assert "--precision bf16" in found["command"]
    assert [line for line in found["advice"] if line.endswith("is usual for lora")]


def test_a_run_that_goes_on_by_itself_is_planned(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--config production` has `resume: auto`."""
    monkeypatch.setattr(Planning, "methods", lambda self: [])
    request = requested(tiny_backbone_folder(tmp_path / "model"), rows, resume="auto")
    assert make(request, "cpu", 8 * 10**9, "one_task", execute=False).rows == ()
