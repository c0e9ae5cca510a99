"""A run that finds no memory goes on in smaller micro-batches, and is the run that found enough: losses, weights, row order.

The failures are injected: at a place of a step, for micro-batches of more than so many rows, on one of the ranks.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_ft
from lightning_ft.errors import TrainingError

COMMON: dict[str, Any] = {
    "epochs": 1, "precision": "fp32", "learning_rate": 3e-4, "weight_decay": 0.1, "verdict_rows": 0, "log_every": 1,
    "eval_every": 5, "preflight": False, "batch_size": 4, "accumulate": 2,
}  # fmt: skip
SCRIPT = Path(__file__).with_name("short.py")


@pytest.fixture(scope="module")
def short() -> Any:
    """The module that injects."""
    spec = importlib.util.spec_from_file_location("short", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 conversations with turns of different weights."""
    path = tmp_path_factory.mktemp("weighted") / "rows.jsonl"
    with path.open("w") as file:
        for i in range(36):
            turns = [
                {"role": "user", "content": f"Say {i}"},
                {"role": "assistant", "content": "x" * (i % 5 + 1), "weight": 0.5},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "yz" * (7 * i % 11 + 2)},
            ]
            split = "train" if i < 32 else "validation"
            file.write(json.dumps({"messages": turns, "split": split}) + "\n")
    return path


@pytest.fixture(scope="module")
def fit(plain_backbone: Path, weighted: Path, environment: Any) -> Any:
    """Runs in this process."""

    def fit(output: Path, **options: Any) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIGHTNING_FT_CACHE", environment["LIGHTNING_FT_CACHE"])
            given = {"model": str(plain_backbone), "data": str(weighted), "output": str(output), **COMMON, **options}
            lightning_ft.fit(**given)
        return output

    return fit


@pytest.fixture(scope="module")
def undisturbed(fit: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that has memory enough, by its options."""
    known: dict[Any, Path] = {}

    def run(**options: Any) -> Path:
        key = tuple(options.items())
        if key not in known:
            known[key] = fit(tmp_path_factory.mktemp("undisturbed") / "run", **options)
        return known[key]

    return run


def assert_same_run(of_run: Any, one: Path, other: Path, validations: int = 1) -> None:
    mine, theirs = of_run.weights(one), of_run.weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=2e-6)
    lines = of_run.lines(one), of_run.lines(other)
    assert len(lines[0]) == len(lines[1]) == 4 + validations
    for mine, theirs in zip(*lines, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"padding_share"}:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-7), key


def told(run: Path) -> list[dict[str, int]]:
    found: list[dict[str, int]] = json.loads((run / "run.json").read_text()).get("out_of_memory", [])
    return found


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("place", ["forward", "backward", "optimizer"])
def test_a_run_that_finds_no_memory_is_the_run_that_found_enough(
    of_run: Any, short: Any, fit: Any, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], place: str, packing: str, method: str,
) -> None:  # fmt: skip
    whole = undisturbed(method=method, packing=packing)
    assert not told(whole)
    short.arm(monkeypatch.setattr, place, at=1, most=1)
    run = fit(tmp_path / "run", method=method, packing=packing)
    expected = [{"step": 1, "parts": 2}] if place == "optimizer" else [{"step": 2, "parts": 2}, {"step": 2, "parts": 4}]
    assert told(run) == expected
    said = capsys.readouterr().err
    for entry in expected:
        line = f"out of memory at step {entry['step']}: micro-batches are halved from now on ({entry['parts']} parts each)"
        assert said.count(line) == 1
    assert_same_run(of_run, whole, run)


@pytest.mark.parametrize("preflight", [False, True])
def test_a_resumed_run_does_not_run_into_it_again(
    of_run: Any, short: Any, fit: Any, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preflight: bool
) -> None:
    """Bit by bit the run that was not stopped; the failure comes before the checkpoint, or in the preflight."""
    options = {"method": "lora", "packing": "on", "save_every": 2, "eval_every": 4, "preflight": preflight}
    short.arm(monkeypatch.setattr, "backward", at=0, most=2)
    whole = fit(tmp_path / "whole", **options)
    assert [entry["parts"] for entry in told(whole)] == [2]
    train = short.FineTuner.training_step
    sizes: list[int] = []
    numbers: list[int] = []

    def stops(self: Any, step: Any, index: int) -> Any:
        if step.number == 3 and self.trainer.global_step == 3:
            raise TrainingError("stopped on purpose")
        sizes.append(max(len(batch.rows) for batch in step.micro))
        return train(self, step, index)

    def counts(self: Any, step: Any, index: int) -> Any:
        numbers.append(step.number)
        return train(self, step, index)

    with monkeypatch.context() as patch:
        patch.setattr(short.FineTuner, "training_step", stops)
        with pytest.raises(TrainingError, match="stopped on purpose"):
            fit(tmp_path / "run", **options)
        assert sizes[0] > 2
        patch.setattr(short.FineTuner, "training_step", counts)
        fit(tmp_path / "run", **options, resume=str(tmp_path / "run"))
    assert numbers == [2, 3], "nothing failed again"
    mine, other = of_run.weights(tmp_path / "whole"), of_run.weights(tmp_path / "run")
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert of_run.lines(tmp_path / "run") == of_run.lines(tmp_path / "whole")


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_row_without_room_is_named_and_what_was_done_is_saved(
    of_run: Any,
    short: Any,
    fit: Any,
    undisturbed: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    packing: str,
) -> None:
    # A validation after the step that fails, which the resumed run makes where it would have been made.
    run, options = tmp_path / "run", {"method": "full", "packing": packing, "eval_every": 3}
    with monkeypatch.context() as patch:
        short.arm(patch.setattr, place, at=2)
        with pytest.raises(TrainingError) as caught:
            fit(run, **options)
    assert caught.value.exit_code == 1
    said = str(caught.value)
    assert "The memory does not suffice for row " in said
    assert "rows.jsonl:" in said
    assert "tokens, alone in its micro-batch (CUDA out of memory. Tried to allocate 20.00 GiB); lower --max_length" in said
    assert said.endswith(f"Then go on with --resume {run}.")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-step-2"]
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    fit(run, **options, resume=str(run))
    assert_same_run(of_run, undisturbed(**options), run, validations=2)


def test_half_an_update_is_not_done_again(short: Any, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short.arm(monkeypatch.setattr, "updated")
    with pytest.raises(TrainingError, match=r"for the optimiser's update of step 1 \(CUDA out of memory.*--optimizer"):
        fit(tmp_path / "run", method="full")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", ["forward", "backward", "optimizer", "row"])
def test_one_of_two_ranks(
    of_run: Any, undisturbed: Any, plain_backbone: Path, weighted: Path, forks: Any, tmp_path: Path, place: str, rank: int
) -> None:
    whole, run = undisturbed(method="full", packing="off"), tmp_path / "run"
    words: list[object] = ["fit", "--model", plain_backbone, "--data", weighted, "--output", run]
    for name, value in (COMMON | {"accumulate": 1, "method": "full", "packing": "off"}).items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else value]
    arm = {"place": place, "at": 1, "most": 2, "rank": rank} if place != "row" else {"place": "backward", "at": 1, "rank": rank}
    ended = forks(*words, folder=run, processes=2, short=arm)
    if place == "row":
        assert "lightning-ft: The memory does not suffice for row " in ended.ended(1).log
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-step-1"], ended.log
        ended = forks("fit", "--resume", run, folder=run, processes=2)
    ended.ended()
    # Of the optimiser's failure in the first step ranks learn from each other in the second one.
    twice = [{"step": 2, "parts": 4}] if place == "row" else []
    assert told(run) == [{"step": 2, "parts": 2}, *twice]
    assert_same_run(of_run, whole, run)
