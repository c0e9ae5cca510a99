"""The preflight: it runs what is largest, changes nothing, and says what memory and time a run will take."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_ft.module import FineTuner
from lightning_ft.run.checkpoint_io import FolderCheckpoint
from lightning_ft.run.preflight import Preflight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.types import Batch

FIT = (
    *("--precision", "fp32", "--verdict_rows", "0", "--learning_rate", "0.01", "--weight_decay", "0.1", "--log_every", "1"),
    *("--max_steps", "5", "--eval_every", "2", "--batch_size", "4", "--max_length", "256"),
)
LONG_ROW = 13


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose attention drops a tenth: its weights depend on the random state."""
    from lightning_ft.testing.models import tiny_llama, tiny_tokenizer

    folder = tmp_path_factory.mktemp("dropping")
    model = tiny_llama()
    model.config.attention_dropout = 0.1
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty rows; one is much longer than the others, and no step that is timed has it."""
    draw = random.Random(0)
    rows = [
        {"instruction": f"Say {n}", "output": "x" * (180 if n == LONG_ROW else draw.randrange(3, 9)), "split": "train"}
        for n in range(30)
    ]
    rows += [{"instruction": "Say it", "output": "y" * n, "split": "validation"} for n in (3, 60, 9)]
    path = tmp_path_factory.mktemp("uneven") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def left_by(run: Path) -> dict[str, bytes]:
    """Weights, and what the log says beside times."""
    found = {path.parent.name: path.read_bytes() for path in run.rglob("adapter_model.safetensors")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in line.items() if k in ("step", "loss", "val_loss", "learning_rate", "grad_norm")} for line in lines
    ]
    return found | {"metrics": json.dumps(kept).encode()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_runs_with_and_without_are_equal_bit_by_bit(cli: Any, clean: None, dropping: Path, uneven: Path, method: str) -> None:
    for wanted in ("true", "false"):
        done = cli("fit", dropping, "--data", uneven, *FIT, "--method", method, "--preflight", wanted, "--output", wanted)
        assert done.code == 0, done.err
        assert ("preflight: " in done.err) is (wanted == "true")
    files = [sorted(Path(wanted).rglob("final_model/*.safetensors")) for wanted in ("true", "false")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert left_by(Path("true")) == left_by(Path("false"))


def state_of(trainer: Any, module: FineTuner) -> dict[str, Any]:
    """Everything that a step could change."""
    return {
        "weights": {name: p.detach().clone() for name, p in module.named_parameters()},
        "buffers": {name: b.clone() for name, b in module.named_buffers()},
        "gradients": [p.grad for p in module.parameters()],
        "optimizer": copy.deepcopy([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedule": copy.deepcopy([config.scheduler.state_dict()["last_epoch"] for config in trainer.lr_scheduler_configs]),
        "random": torch.get_rng_state(),
        "python": random.getstate(),
        "modes": [part.training for part in module.modules()],
        "step": trainer.global_step,
    }


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a preflight does: state before and after it, its micro-batches, evaluation batches and saves."""
    from lightning_ft.engine import loss

    seen: dict[str, Any] = {"micro": [], "evaluated": [], "saved": []}
    begin, micro, save, score = (
        Preflight.on_train_start,
        FineTuner._micro_loss,
        FolderCheckpoint.save_checkpoint,
        loss.score_rows,
    )

    def on_train_start(self: Preflight, trainer: Any, pl_module: Any) -> None:
        seen["schedule"] = self.data.schedule
        seen["before"] = state_of(trainer, pl_module)
        begin(self, trainer, pl_module)
        seen["after"] = state_of(trainer, pl_module)

    def micro_loss(self: FineTuner, batch: Batch, step: Any) -> Any:
        if "after" not in seen:
            seen["micro"].append(batch.input_ids.numel())
        return micro(self, batch, step)

    def score_rows(model: Any, batch: Batch) -> Any:
        if "after" not in seen:
            seen["evaluated"].append(batch.input_ids.shape[1])
        return score(model, batch)

    def save_checkpoint(self: FolderCheckpoint, checkpoint: Mapping[str, Any], path: Any, **rest: Any) -> None:
        save(self, dict(checkpoint), path, **rest)
        if "after" not in seen:
            seen["saved"].append(sorted(file.name for file in Path(path).iterdir()))

    monkeypatch.setattr(Preflight, "on_train_start", on_train_start)
    monkeypatch.setattr(FineTuner, "_micro_loss", micro_loss)
    monkeypatch.setattr(FolderCheckpoint, "save_checkpoint", save_checkpoint)
    monkeypatch.setattr(loss, "score_rows", score_rows)
    return seen


@pytest.mark.parametrize("packing", ["on", "off"])
def test_it_runs_what_is_largest_and_leaves_no_trace(
    cli: Any, clean: None, dropping: Path, uneven: Path, watched: dict[str, Any], packing: str
) -> None:
    done = cli(
        "fit",
        dropping,
        "--data",
        uneven,
        *FIT,
        "--packing",
        packing,
        "--epochs",
        "1",
        "--max_steps",
        "9",
        "--seed",
        "2",
        "--output",
        "a",
    )
    assert done.code == 0, done.err
    schedule = watched["schedule"]
    micro = [rows for step in schedule for rows in step.ranks[0]]
    longest = int(schedule.lengths.max())
    assert longest > 3 * sorted(schedule.lengths)[-2]
    assert sum(longest in schedule.lengths[list(rows)] for rows in micro) == 1
    assert max(watched["micro"]) >= (longest if packing == "on" else 2 * longest)
    assert max(watched["micro"][1:]) < longest, "a timed step has the longest row: the test shows nothing"
    assert watched["evaluated"][0] > 60
    (files,) = watched["saved"]
    assert {"adapter_model.safetensors", "trainer_state.safetensors", "tokenizer.json"} <= set(files)
    before, after = watched["before"], watched["after"]
    assert after.pop("gradients") == before.pop("gradients")
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not list(Path("a").rglob(".tmp-*"))


def test_what_it_says_is_what_it_measured(cli: Any, clean: None, dropping: Path, uneven: Path) -> None:
    done = cli("fit", dropping, "--data", uneven, *FIT, "--output", "a")
    assert done.code == 0, done.err
    found = json.loads(Path("a/run.json").read_text())["preflight"]
    (said,) = [line for line in done.err.splitlines() if line.startswith("preflight: ")]
    assert f"peak memory {found['peak_memory'] / 2**30:.2f} GiB" in said
    # Five steps; validations and saves after the second, the fourth and the last one.
    expected = 5 * found["step_seconds"] + 3 * found["validation_seconds"] + 3 * found["save_seconds"]
    assert found["total_seconds"] == pytest.approx(expected)
    assert min(found.values()) > 0


def test_a_resumed_run_has_no_second_one(runs: Any, argv: tuple[object, ...], clean: None) -> None:
    import signal

    code, log = runs(*argv, "--preflight", "true", fault=("validation", 2, "signals", [signal.SIGKILL]))
    assert code == -signal.SIGKILL, log
    assert "preflight: " in log
    assert "preflight: " not in runs.goes_on()


def really_out_of_memory(self: FineTuner, batch: Batch, step: Any) -> Any:
    """A petabyte: torch's own error."""
    return torch.empty(1 << 50, dtype=torch.uint8)


def gpu_out_of_memory(self: FineTuner, batch: Batch, step: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines of torch.")


@pytest.mark.parametrize(
    ("error", "preflight"), [(really_out_of_memory, "true"), (gpu_out_of_memory, "true"), (really_out_of_memory, "false")]
)
def test_no_memory_is_one_sentence_with_what_to_lower(
    cli: Any,
    refused: Any,
    clean: None,
    dropping: Path,
    uneven: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Any,
    preflight: str,
) -> None:
    monkeypatch.setattr(FineTuner, "_micro_loss", error)
    done = cli("fit", dropping, "--data", uneven, *FIT, "--preflight", preflight, "--output", "a")
    said = refused(done, "--max_length", "--gradient_checkpointing true", code=1, at_once=False)
    assert re.search(r"for row \S+rows\.jsonl:\d+ of \d+ tokens, alone in its micro-batch \(", said)
    assert "(2 parts each)" in done.err
    assert "More lines" not in said
    assert not list(Path("a").glob("checkpoints/*"))
    assert not Path("a/final_model").exists()
    assert json.loads(Path("a/run.json").read_text())["status"] == "failed"


def test_a_full_disk_is_found_before_the_first_step(
    cli: Any, refused: Any, clean: None, dropping: Path, uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning_ft.run.checkpoint_io.save_state", full)
    done = cli("fit", dropping, "--data", uneven, *FIT, "--output", "a")
    refused(done, "Could not write", "No space left on device", code=1, at_once=False)
    assert "step 1/" not in done.err
    assert not list(Path("a").glob("checkpoints/*"))


def test_memory_of_shapes_that_it_does_not_meet_is_counted(
    cli: Any, clean: None, dropping: Path, uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every new shape takes a megabyte here, and the preflight's own peak is a thousand bytes."""
    from lightning_ft.run import preflight

    taken: list[int] = []
    data: list[Any] = []
    begin = Preflight.on_train_start

    def heap_in_use() -> int:
        taken.append(2**20)
        return sum(taken)

    def on_train_start(self: Preflight, trainer: Any, pl_module: Any) -> None:
        data.append(self.data)
        begin(self, trainer, pl_module)

    monkeypatch.setattr(preflight, "heap_in_use", heap_in_use)
    monkeypatch.setattr(preflight, "peak_memory", lambda: 1000)
    monkeypatch.setattr(preflight, "TIMED", 2)
    monkeypatch.setattr(Preflight, "on_train_start", on_train_start)
    done = cli(
        "fit", dropping, "--data", uneven, *FIT, "--packing", "off", "--preflight", "true", "--output", "run", "--seed", "2"
    )
    assert done.code == 0, done.err
    schedule = data[0].schedule
    shapes = [{data[0].shape(micro) for micro in schedule.step(n).ranks[0]} for n in range(schedule.total_steps)]
    largest = max(shapes, key=lambda own: max(rows * tokens for rows, tokens in own))
    met = largest | shapes[0] | shapes[schedule.total_steps // 2]
    unmet = set().union(*shapes) - met
    assert unmet, "or this would show nothing"
    estimate = json.loads(next(Path("run").rglob("run.json")).read_text())["preflight"]
    assert estimate["peak_memory"] == 1000 + 2**20 * len(unmet)
