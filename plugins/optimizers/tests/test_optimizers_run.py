"""Whole runs with each optimiser: chosen on the command line, tried by the preflight, stopped in the middle and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lightning_ft
from lightning_ft.cli import main
from lightning_ft.errors import UsageError
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import stopped_at

GAP = {"update_proj_gap": 3}
CHOICES: dict[str, dict[str, Any]] = {
    "adafactor": {"name": "adafactor"},
    "apollo": {"name": "apollo", **GAP},
    "apollo-mini": {"name": "apollo", "scale_type": "tensor", **GAP},
    "galore": {"name": "galore", "rank": 8, **GAP},
    "lion": {"name": "lion", "betas": [0.95, 0.98]},
    "muon": {"name": "muon"},
}
pytestmark = pytest.mark.usefixtures("module_cache")
OPTIONS: dict[str, Any] = {
    "method": "full", "max_steps": 8, "eval_every": 4, "batch_size": 4, "precision": "fp32", "verdict_rows": 0, "keep_best": 5,
    "log_every": 1, "learning_rate": 3e-3, "weight_decay": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n % 9 + 1)))} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone_folder(tmp_path_factory.mktemp("model"), "llama")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final_model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


@pytest.mark.parametrize("choice", CHOICES)
def test_preflight_and_resume_leave_every_bit_as_it_was(choice: str, model: Path, rows: Path, tmp_path: Path) -> None:
    def fit(folder: str, **more: Any) -> Path:
        options = {**OPTIONS, "optimizer": CHOICES[choice], **more}
        return lightning_ft.fit(model=str(model), data=rows, output=str(tmp_path / folder), **options).folder

    run, tried = fit("run", preflight=False), fit("tried", preflight=True)
    assert losses(run)[-1] < losses(run)[0]
    assert same(weights(run), weights(tried))
    assert losses(run) == losses(tried)
    stopped = tmp_path / "stopped"
    resume = str(stopped_at(run, stopped, 4))
    fit("run", preflight=False, resume=resume)
    assert same(weights(run), weights(stopped))
    assert losses(run) == losses(stopped)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_of_the_shipped_model_from_the_command_line(method: str, rows: Path, tmp_path: Path) -> None:
    """With LoRA the first gradients of A are zero, and so is B."""
    run = tmp_path / "run"
    words = ("fit", "--model", "embedded", "--data", rows, "--method", method, "--optimizer", "galore", "--optimizer.scale", 4)
    more = ("--max_steps", 4, "--batch_size", 4, "--verdict_rows", 0, "--save_every", 0, "--log_every", 1, "--output", run)
    assert main([str(word) for word in (*words, *more, "--precision", "fp32", "--learning_rate", 1e-3, "--warmup", 0)]) == 0
    assert losses(run)[-1] < losses(run)[0]
    assert "name: GaLore" in (run / "config.yaml").read_text()
    assert "scale: 4.0" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"foreach": True}, None),
        ({"foreach": True, "fused": True}, "^Optimiser AdamW refused its options: `fused` and `foreach`"),
        ({"differentiable": True}, r"^Expected --optimizer\.differentiable false"),
    ],
)
def test_other_ways_to_update(options: dict[str, Any], said: str | None, model: Path, rows: Path, tmp_path: Path) -> None:
    given = {**OPTIONS, "max_steps": 2, "preflight": False, "optimizer": {"name": "AdamW", **options}}
    if said is None:
        run = lightning_ft.fit(model=str(model), data=rows, output=str(tmp_path / "run"), **given)
        assert (run.folder / "final_model").is_dir()
        return
    with pytest.raises(UsageError, match=said):
        lightning_ft.fit(model=str(model), data=rows, output=str(tmp_path / "run"), **given)


def test_a_bad_option_is_one_sentence(model: Path, rows: Path, tmp_path: Path) -> None:
    choice = {"name": "galore", "rank": 5000}
    with pytest.raises(UsageError, match=r"^Optimiser GaLore refused its options: expected a rank below .*, got 5000\.$"):
        lightning_ft.fit(model=str(model), data=rows, output=str(tmp_path / "run"), **{**OPTIONS, "optimizer": choice})


@pytest.mark.parametrize("name", ["adafactor", "apollo", "galore", "lion"])
def test_help_explains_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import inspect

    from lightning_ft.registry import registry

    assert main(["fit", "--optimizer", name, "--help"]) == 0
    shown = capsys.readouterr().out.partition("Options of optimizer ")[2]
    entry = registry().optimizers[name]
    options = [p for p in inspect.signature(entry.cls).parameters if p not in ("params", "lr", "weight_decay")]
    assert options
    for option in options:
        _, _, said = shown.partition(f"--optimizer.{option}")
        assert len(said.partition("--optimizer.")[0].partition("(")[0].split()) > 2, f"{option} has no explanation"
