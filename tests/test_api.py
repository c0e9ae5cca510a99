"""The Python interface: what `fit`, `evaluate` and `generate` take, return and refuse."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import lightning_ft
from lightning_ft import Run, TrainingConfig, evaluate, fit, generate
from lightning_ft.errors import CheckFailedError, TrainingError, UsageError
from lightning_ft.registry import registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHORT: dict[str, Any] = {
    "precision": "fp32", "max_steps": 2, "batch_size": 4, "verdict_rows": 3, "max_new_tokens": 4, "log_every": 1,
    "learning_rate": 1e-2,
}  # fmt: skip
NO_EXTRAS: dict[str, Any] = {**SHORT, "verdict_rows": 0, "preflight": False, "save_every": 0}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_FT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from lightning_ft.testing.models import tiny_backbone_folder

    return str(tiny_backbone_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"instruction": f"Where is order {n}?", "output": f"It is in city {n % 7}."} for n in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def run(model: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A method as an instance, data as a text."""
    method = registry().methods["lora"].cls(rank=4, target_modules=["q_proj"])
    return fit(model=model, data=data, method=method, output=str(tmp_path_factory.mktemp("runs") / "run"), **SHORT)


def test_a_run_has_folder_metrics_record_and_verdict(run: Run) -> None:
    assert (run.folder / "report.html").is_file()
    adapter = json.loads((run.folder / "final_model" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["target_modules"]) == (4, ["q_proj"])
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2]
    assert run.record["status"] == "finished"
    assert run.verdict is not None
    assert run.verdict.as_dict() == json.loads((run.folder / "verdict.json").read_text())
    assert "3 held-out rows" in run.verdict.sentence()


def test_a_text_is_answered_by_a_text_and_a_list_by_a_list(run: Run) -> None:
    one = run.generate("Where is order 3?", max_new_tokens=3)
    many = run.generate(["Where is order 3?", "And 4?"], max_new_tokens=3)
    assert isinstance(one, str)
    assert isinstance(many, list)
    assert many[0] == one
    # The model in memory and the one on disk are the same, by every name it has.
    for name in (run.folder, run.folder / "final_model", run.folder / "checkpoints" / "checkpoint-step-2"):
        assert generate(str(name), "Where is order 3?", max_new_tokens=3) == one
    assert Run(run.folder).generate("Where is order 3?", max_new_tokens=3) == one


def test_sampling_follows_the_seed(run: Run) -> None:
    def draw(seed: int) -> str:
        answer = run.generate("Where?", max_new_tokens=12, temperature=1.5, seed=seed)
        assert isinstance(answer, str)
        return answer

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_evaluate_measures_every_row_or_a_sample(run: Run, data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"metrics": ["token_f1"], "max_new_tokens": 2}
    result = evaluate(str(run.folder), data, output=str(tmp_path / "all"), **options)
    assert result.folder == tmp_path / "all"
    assert set(result.metrics) == {"loss", "perplexity", "token_accuracy", "token_f1"}
    assert json.loads((result.folder / "results.json").read_text())["rows"] == 30
    sample = evaluate(str(run.folder), [data], output=str(tmp_path / "some"), max_rows=5, **options)
    again = evaluate(str(run.folder), [data], output=str(tmp_path / "more"), max_rows=5, **options)
    assert sample.metrics == again.metrics != result.metrics


def test_the_config_that_was_given_is_checked_and_complete(model: str, data: str) -> None:
    config = TrainingConfig.from_dict({"model": model, "data": data})
    assert config.data == [data]
    with pytest.raises(UsageError, match=r"got 'epoch'\. Did you mean 'epochs'"):
        fit(model=model, data=data, epoch=3)
    with pytest.raises(UsageError, match="Expected --data, got nothing"):
        fit(model=model, data=[])
    with pytest.raises(UsageError, match="Expected --learning_rate to be a finite number; got nan"):
        fit(model=model, data=data, learning_rate=float("nan"))
    with pytest.raises(UsageError, match="Expected --learning_rate to be a finite number; got '1e-4'"):
        fit(model=model, data=data, learning_rate="1e-4")
    with pytest.raises(UsageError, match=r"got 'rnk'\. Did you mean 'rank'"):
        fit(model=model, data=data, method={"name": "lora", "rnk": 3})
    with pytest.raises(UsageError, match="Expected --method to be a name or"):
        fit(model=model, data=data, method=3)


def test_prompts_and_options_are_checked_before_a_model_is_loaded() -> None:
    for prompts in ("", " \n", [], ["x", ""], [3]):
        with pytest.raises(UsageError, match="Expected at least one prompt, and none of them empty"):
            generate("no/such/model", prompts)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(UsageError, match="Expected options of Sampling"):
        generate("no/such/model", "x", temprature=1)
    with pytest.raises(UsageError, match="Expected --top_p to be above 0"):
        generate("no/such/model", "x", top_p=0)
    with pytest.raises(UsageError, match="Expected --max_rows to be at least 1"):
        evaluate("no/such/model", "x.jsonl", max_rows=0)


def test_a_failed_run_says_so_and_lets_its_folder_go(model: str, data: str, tmp_path: Path) -> None:
    """A rate that overflows: the run stops with an error of its own, and run.json names it."""
    output = tmp_path / "run"
    with pytest.raises(TrainingError, match="is not finite"):
        fit(model=model, data=data, output=str(output), **{**NO_EXTRAS, "learning_rate": 1e30, "warmup": 0})
    record = json.loads((output / "run.json").read_text())
    assert record["status"] == "failed"
    assert "is not finite" in record["error"]
    assert not (output / ".lock").exists()
    assert not (output / "final_model").exists()


def test_a_check_that_says_no_leaves_no_folder(model: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match="--max_length 8 to cut at most"):
        fit(model=model, data=data, max_length=8, output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_rows_that_stand_in_several_files_and_a_task_as_instance(model: str, data: str, tmp_path: Path) -> None:
    extra = tmp_path / "more.jsonl"
    extra.write_text('{"question": "a", "answer": "b"}\n' * 4, encoding="utf-8")
    task = registry().tasks["instruct"].cls(system="Be brief.")
    found = fit(model=model, data=[data, str(extra)], task=task, output=str(tmp_path / "run"), **NO_EXTRAS)
    assert found.verdict is None
    ledger = json.loads((found.folder / "ledger.json").read_text())
    assert {source: counts["read"] for source, counts in ledger["sources"].items()} == {data: 30, str(extra): 4}
    assert "system: Be brief." in (found.folder / "config.yaml").read_text()


def test_public_names_are_there_and_documented() -> None:
    for name in lightning_ft.__all__:
        assert getattr(lightning_ft, name) is not None
    assert all((getattr(lightning_ft, name).__doc__ or "").strip() for name in ("fit", "evaluate", "generate", "Run"))
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = lightning_ft.fitt


def test_the_base_of_new_weights_is_what_training_began_with(
    model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights train, so that the base is made again; the folder has none to load."""
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "config"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    options = {**SHORT, "max_steps": 1, "learning_rate": 1e-12, "retention": "none"}
    run = fit(model=str(folder), data=data, method="full", from_scratch=True, output=str(tmp_path / "run"), **options)
    assert run.verdict is not None
    loss = next(one for one in run.verdict.comparisons if one.metric == "loss")
    assert loss.base == pytest.approx(loss.tuned, abs=1e-6)
    assert loss.base > 3, "new weights know nothing"
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in run.metrics] == [1, 1], "the step and its validation; the line that was cut is none"
