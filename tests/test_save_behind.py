"""Checkpoints that are written behind the training: the same files, no step waits, nothing is deleted too early or lost."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.checkpoint import checkpoints
from lightning_ft.cli import main
from lightning_ft.errors import TrainingError
from lightning_ft.module import FineTuner
from lightning_ft.run.checkpoint_io import FolderCheckpoint

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TinyFit

OPTIONS: dict[str, Any] = {"max_steps": 4, "eval_every": 1, "keep_best": 9, "save_every": 1, "verdict_rows": 0}


def files(run: Path) -> dict[str, bytes]:
    """All checkpoints, but for times that have passed (in the recorder's sums) and hashes of files with such."""
    timed = {"trainer_state.json", "manifest.json"}
    found = {str(p.relative_to(run)): p for p in (run / "checkpoints").rglob("*") if p.is_file()}
    return {name: b"" if p.name in timed else p.read_bytes() for name, p in found.items()}


@pytest.mark.parametrize(("family", "method"), [("llama", "lora"), ("llama", "full"), ("gpt2", "full"), ("llama", "p_tuning")])
def test_the_files_are_the_same(tiny_fit: TinyFit, tiny_folder: Path, family: str, method: str) -> None:
    """Of a whole model (with a tied head, too), of an adapter, whose config lists layers in one order, and of a soft prompt."""
    given = OPTIONS | {"model": str(tiny_folder / family), "method": method}
    one = tiny_fit(**given, output="one").run.folder
    other = tiny_fit(**given, output="other", save_behind=True).run.folder
    assert files(one).keys() == files(other).keys()
    assert len(checkpoints(one)) == 4
    assert files(one) == files(other)
    assert (one / "metrics.jsonl").read_text().count('"step"') == (other / "metrics.jsonl").read_text().count('"step"')


def test_a_soft_prompts_save_switches_nothing_of_the_model_that_trains(
    tiny_fit: TinyFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft saves configs switched to inference, and in inference the model would take the saved vectors for its encoder's."""
    from peft import PromptEncoderConfig

    training: list[Any] = []
    seen, save = [], PromptEncoderConfig.save_pretrained

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((self.inference_mode, training[0].peft_config["default"].inference_mode))
        save(self, *args, **kwargs)

    def noted(self: Any) -> None:
        training[:] = [self.model]

    monkeypatch.setattr(PromptEncoderConfig, "save_pretrained", watched)
    monkeypatch.setattr(FineTuner, "on_train_start", noted)
    tiny_fit(**OPTIONS | {"method": "p_tuning"}, save_behind=True)
    assert set(seen) == {(True, False)}, "as saved, as trained"


def test_steps_go_on_while_one_is_written_and_none_is_deleted_before(
    tiny_fit: TinyFit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second save cannot end before the third step has begun."""
    begun, there, write = threading.Event(), [], FolderCheckpoint.write
    step, saves = FineTuner.training_step, []

    def slow(self: Any, checkpoint: Any, folder: Path, gathered: Any = None) -> None:
        saves.append(folder)
        if len(saves) == 2:
            assert begun.wait(120)
        write(self, checkpoint, folder, gathered)

    def watched(self: Any, batch: Any, index: int) -> Any:
        if batch.number == 2:
            there.append([path.name for path in checkpoints(tmp_path / "run")])
            begun.set()
        return step(self, batch, index)

    monkeypatch.setattr(FolderCheckpoint, "write", slow)
    monkeypatch.setattr(FineTuner, "training_step", watched)
    seen = tiny_fit(**OPTIONS | {"keep_best": 0}, output=str(tmp_path / "run"), save_behind=True)
    assert there == [["checkpoint-step-1"]], "the one before, while step 2 is being written"
    assert [path.name for path in checkpoints(seen.run.folder)] == ["checkpoint-step-4"]


@pytest.mark.parametrize("method", ["full", "p_tuning", "prompt_tuning"])
def test_what_changes_meanwhile_is_not_saved(method: str, tiny_fit: TinyFit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every save waits until the next step is over, but for the last one."""
    over, write, ended = threading.Condition(), FolderCheckpoint.write, FineTuner.on_train_batch_end
    steps, waited = [0], []

    def late(self: Any, checkpoint: Any, folder: Path, gathered: Any = None) -> None:
        if self.behind:
            with over:
                before = steps[0]
                waited.append(over.wait_for(lambda: steps[0] > before, timeout=1))
        write(self, checkpoint, folder, gathered)

    def noted(self: Any, *args: Any) -> None:
        with over:
            steps[0] += 1
            over.notify_all()
        ended(self, *args)

    monkeypatch.setattr(FolderCheckpoint, "write", late)
    monkeypatch.setattr(FineTuner, "on_train_batch_end", noted)
    given = OPTIONS | {"method": method}
    one = tiny_fit(**given, output="one").run.folder
    other = tiny_fit(**given, output="other", save_behind=True).run.folder
    assert waited.count(True) >= 3
    assert files(one) == files(other)


def test_a_save_that_fails_ends_the_run(tiny_fit: TinyFit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the next save, with the checkpoint before it untouched."""
    write, saves = FolderCheckpoint.write, []

    def full(self: Any, checkpoint: Any, folder: Path, gathered: Any = None) -> None:
        saves.append(folder)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, checkpoint, folder, gathered)

    monkeypatch.setattr(FolderCheckpoint, "write", full)
    with pytest.raises(TrainingError, match=r"Could not write '.*checkpoint-step-2': No space left on device"):
        tiny_fit(**OPTIONS, output=str(tmp_path / "run"), save_behind=True)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-step-1"]
    assert threading.active_count() == len([t for t in threading.enumerate() if t.name != "checkpoint"])


def test_shards_are_refused(tiny_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--model", str(tiny_folder / "llama"), "--data", str(tiny_folder / "rows.jsonl"), "--devices", "2"]
    assert main(["fit", *argv, "--strategy", "fsdp2", "--save_behind", "true"]) == 2
    assert "Expected --strategy auto or ddp with --save_behind" in capsys.readouterr().err
