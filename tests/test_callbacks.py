"""Saver and Recorder by themselves: which checkpoints stay, which is best, what a resumed log keeps, how signals are heard."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from lightning.pytorch.trainer.states import RunningStage

from lightning_ft.atomic import broken, whole_folder
from lightning_ft.checkpoint import checkpoints, path_of, step_of
from lightning_ft.config import TrainingConfig
from lightning_ft.errors import RunInterruptedError
from lightning_ft.monitor import Monitor
from lightning_ft.run import signals
from lightning_ft.run.callbacks import Saver, TimeLimit
from lightning_ft.run.checkpoint_io import FolderCheckpoint
from lightning_ft.run.folder import RunFolder
from lightning_ft.run.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Writing:
    """As much of a trainer as a Saver asks: it writes and removes real checkpoint folders."""

    def __init__(self) -> None:
        self.is_global_zero, self.world_size, self.sanity_checking = True, 1, False
        self.global_step, self.should_stop, self.val_check_batch, self.enable_validation = 0, False, 2, True
        self.callback_metrics: dict[str, float] = {}
        self.callbacks: list[Any] = []
        self.state = SimpleNamespace(fn="fit")
        self.strategy = cast("Any", FolderCheckpoint(cast("Any", None)))
        self.strategy.checkpoint_io = self.strategy

    def save_checkpoint(self, path: Path) -> None:
        with whole_folder(path) as folder:
            (folder / "weights").write_text(path.name)

    def validated(self, saver: Saver, step: int, **metrics: float) -> None:
        """A validation after `step`, as Lightning reports it."""
        self.global_step, self.callback_metrics = step, metrics
        saver.on_validation_end(self, None)  # type: ignore[arg-type]  # see above

    def trained(self, saver: Saver, step: int) -> None:
        """The end of a step."""
        self.global_step = step
        saver.on_train_batch_end(self, None, None, None, step - 1)  # type: ignore[arg-type]  # see above


def saver_of(folder: Path, total: int = 10, *, validates: bool = True, **options: Any) -> Saver:
    config = TrainingConfig(model="m", data=["d"], **options)
    return Saver(config, RunFolder(folder), total, Monitor.of(config.monitor, config.monitor_mode), validates=validates)


def kept(folder: Path) -> list[int]:
    assert [p for p in checkpoints(folder) if broken(p)] == []
    return sorted(map(step_of, checkpoints(folder)))


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path, keep_best=2), Writing()
    stay = []
    for step, loss in zip((2, 4, 6, 8, 10), (3.0, 1.0, 2.0, 4.0, 5.0), strict=True):
        trainer.validated(saver, step, val_loss=loss)
        stay.append(kept(tmp_path))
    assert stay == [[2], [2, 4], [4, 6], [4, 6, 8], [4, 6, 10]]
    assert saver.best_step == 4


def test_a_loss_that_is_not_a_number_is_never_best(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path), Writing()
    for step, loss in ((2, float("nan")), (4, 7.0), (6, float("nan"))):
        trainer.validated(saver, step, val_loss=loss)
    assert saver.best_step == 4
    assert kept(tmp_path) == [4, 6]


def test_of_equal_losses_the_earlier_is_best(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path, keep_best=9), Writing()
    for step in (2, 4, 6):
        trainer.validated(saver, step, val_loss=1.0)
    assert saver.best_step == 2


def test_a_broken_checkpoint_is_not_best(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path, keep_best=9), Writing()
    for step, loss in ((2, 1.0), (4, 2.0), (6, 3.0)):
        trainer.validated(saver, step, val_loss=loss)
    (path_of(tmp_path, 2) / "weights").write_text("rubbish")
    assert saver.best_step == 4


def test_what_is_best_is_saved_whatever_the_steps_between_saves(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path, save_every=5, keep_best=1), Writing()
    for step, loss in ((2, 3.0), (4, 1.0), (5, None), (6, 2.0), (8, 2.5)):
        if loss is None:
            trainer.trained(saver, step)
        else:
            trainer.validated(saver, step, val_loss=loss)
    assert (saver.best_step, kept(tmp_path)) == (4, [4, 5])
    trainer.should_stop = True  # by early stopping
    trainer.validated(saver, 9, val_loss=2.5)
    assert (saver.best_step, kept(tmp_path)) == (4, [4, 9])


def test_without_checkpoints_to_choose_among_none_is_best(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path, keep_best=0), Writing()
    for step, loss in ((2, 1.0), (4, 2.0)):
        trainer.validated(saver, step, val_loss=loss)
    assert (saver.best_step, kept(tmp_path)) == (None, [4])


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("left", [0.0, 60.0])
def test_time_that_is_up_is_no_reason_to_train_no_further(tmp_path: Path, left: float, validates: bool) -> None:
    """Nor is the last step lost then, whatever the steps between saves; another reason is one."""
    saver, trainer, limit = saver_of(tmp_path, save_every=3, validates=validates), Writing(), TimeLimit("00:00:00:00")
    limit._duration = left
    limit._start_time[RunningStage.TRAINING] = time.monotonic()
    trainer.callbacks, trainer.should_stop = [limit], left > 0
    trainer.strategy.broadcast = lambda value: value
    limit.on_train_batch_end(cast("Any", trainer))
    trainer.trained(saver, 4)
    if validates:
        trainer.validated(saver, 4, val_loss=1.0)
    assert (kept(tmp_path), trainer.should_stop) == ([4], True)
    assert saver.state_dict()["stops"] == saver.ended(cast("Any", trainer)) == (left > 0)
    assert limit.state_dict() == {}


def test_scores_survive_a_resume(tmp_path: Path) -> None:
    saver, trainer = saver_of(tmp_path), Writing()
    trainer.validated(saver, 2, val_loss=1.0)
    trainer.validated(saver, 4, val_loss=2.0)
    again = saver_of(tmp_path)
    again.load_state_dict(json.loads(json.dumps(saver.state_dict())))
    assert (again.scores, again.best_step) == ({2: 1.0, 4: 2.0}, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, {2, 4, 6, 7}), ({"save_every": 3, "keep_best": 0}, {3, 6, 7}), ({"save_every": 0}, set())],
)
@pytest.mark.parametrize("has_rows", [True, False], ids=["validates", "has no rows for it"])
@pytest.mark.parametrize("switched_off", [False, True], ids=["", "Lightning leaves it out"])
def test_when_checkpoints_are_written(
    tmp_path: Path, options: Any, expected: set[int], has_rows: bool, switched_off: bool
) -> None:
    saver, trainer = saver_of(tmp_path, total=7, validates=has_rows, **options), Writing()
    trainer.enable_validation = not switched_off
    written = set()
    for step in range(1, 8):
        trainer.trained(saver, step)
        if has_rows and not switched_off and (step % 2 == 0 or trainer.should_stop):
            trainer.validated(saver, step, val_loss=1.0)
        written |= set(kept(tmp_path))
    assert written == expected
    assert trainer.should_stop


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[Saver, Writing]]:
    """A Saver during training; SIGINT and SIGTERM are as before afterwards."""
    before = [signal.getsignal(number) for number in signals.HANDLED]
    saver, trainer = saver_of(tmp_path), Writing()
    saver.on_train_start(trainer, None)  # type: ignore[arg-type]  # see above
    yield saver, trainer
    saver.teardown(trainer, None, "fit")  # type: ignore[arg-type]  # see above
    assert [signal.getsignal(number) for number in signals.HANDLED] == before


@pytest.mark.parametrize("number", signals.HANDLED)
def test_a_signal_waits_for_the_step_and_saves(listening: tuple[Saver, Writing], number: int) -> None:
    saver, trainer = listening
    os.kill(os.getpid(), number)
    with pytest.raises(RunInterruptedError, match=r"after step 3 of 10; everything is saved\. Go on with --resume") as caught:
        trainer.trained(saver, 3)
    assert caught.value.signum == number
    assert kept(saver.folder) == [3]


def test_a_signal_before_a_validation_waits_for_its_score(listening: tuple[Saver, Writing]) -> None:
    saver, trainer = listening
    os.kill(os.getpid(), signal.SIGTERM)
    trainer.trained(saver, 4)
    with pytest.raises(RunInterruptedError, match="after step 4"):
        trainer.validated(saver, 4, val_loss=2.5)
    assert saver.scores == {4: 2.5}
    assert kept(saver.folder) == [4]


def test_a_second_signal_does_not_wait(listening: tuple[Saver, Writing]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(RunInterruptedError, match="Stopped at once by SIGTERM") as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM


def test_outside_of_steps_a_signal_is_an_error_at_once() -> None:
    before = [signal.getsignal(number) for number in signals.HANDLED]
    for number in signals.HANDLED:
        with pytest.raises(RunInterruptedError, match="--resume auto"), signals.stoppable():
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in signals.HANDLED] == before


def test_another_thread_leaves_signals_alone_and_takes_what_is_delivered() -> None:
    """The innermost handler gets it, as with real signals, and afterwards nobody is there."""
    before = [signal.getsignal(number) for number in signals.HANDLED]
    noted: list[int] = []
    there, over = threading.Event(), threading.Event()

    def run() -> None:
        with signals.stoppable():
            handlers = signals.install(lambda number, frame: noted.append(number))
            there.set()
            over.wait(60)
            signals.restore(handlers)

    assert not signals.deliver(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    assert there.wait(60)
    assert signals.deliver(signal.SIGTERM)
    assert noted == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in signals.HANDLED] == before
    over.set()
    thread.join()
    assert not signals.deliver(signal.SIGTERM)


def test_what_is_delivered_outside_of_steps_is_an_error_of_who_delivers() -> None:
    there, over = threading.Event(), threading.Event()

    @signals.stoppable()
    def run() -> None:
        there.set()
        over.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    assert there.wait(60)
    with pytest.raises(RunInterruptedError, match="Stopped at once by SIGINT"):
        signals.deliver(signal.SIGINT)
    over.set()
    thread.join()


@pytest.mark.parametrize("torn", ["", '{"step": 5, "loss": 1.', '{"step": 5, "loss": 1.0}'])
def test_a_resumed_log_keeps_what_came_before_the_checkpoint(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 5)) + torn, encoding="utf-8")
    recorder = Recorder(TrainingConfig(model="m", data=["d"]), SimpleNamespace(total_steps=9), path, None)  # type: ignore[arg-type]  # its steps are not asked for
    recorder.on_train_start(SimpleNamespace(global_step=3, is_global_zero=True), None)  # type: ignore[arg-type]  # see above
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == [1, 2, 3]
    assert path.read_text(encoding="utf-8").endswith("\n")


def test_a_resumed_run_writes_the_line_that_it_would_have_written(tmp_path: Path) -> None:
    """All sums since the last line are kept, also those of positions that were not computed."""
    module, trainer = SimpleNamespace(trainer=SimpleNamespace(world_size=1)), SimpleNamespace(is_global_zero=True)

    def recorder() -> Recorder:
        schedule: Any = SimpleNamespace(total_steps=9)
        return Recorder(TrainingConfig(model="m", data=["d"]), schedule, tmp_path / "metrics.jsonl", None)

    before, after, checkpoint = recorder(), recorder(), dict[str, Any]()
    names = ("_tokens", "_cells", "_spared", "_steps", "_supervised", "_seconds", "_cpu_seconds")
    for number, name in enumerate(names, start=1):
        setattr(before, name, number)
    before.on_save_checkpoint(cast("Any", trainer), cast("Any", module), checkpoint)
    after.on_load_checkpoint(cast("Any", trainer), cast("Any", module), checkpoint)
    assert [getattr(after, name) for name in names] == [1, 2, 3, 4, 5, 6, 7]
