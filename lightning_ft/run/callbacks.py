"""Callbacks of a run: checkpoints, signals, and the end that early stopping makes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lightning_ft import checkpoint
from lightning_ft.atomic import broken
from lightning_ft.errors import NoMemoryError, RunInterruptedError, TrainingError, UsageError, did_you_mean
from lightning_ft.run import signals
from lightning_ft.run.checkpoint_io import FolderCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning_ft.config import TrainingConfig
    from lightning_ft.module import FineTuner
    from lightning_ft.monitor import Monitor
    from lightning_ft.run.folder import RunFolder
    from lightning_ft.types import Step


class Saver(L.Callback):
    """Writes checkpoints after the validation of their step, keeps the newest and the best, and stops on signals.

    Args:
        config: The run's options.
        folder: The run folder.
        total_steps: Steps of the whole run.
        monitor: What makes a checkpoint the best.
        validates: Whether there is a validation set.
    """

    def __init__(
        self, config: TrainingConfig, folder: RunFolder, total_steps: int, monitor: Monitor, *, validates: bool
    ) -> None:
        self._run = folder
        self.total_steps = total_steps
        self.validates = validates
        self.keep_best = config.keep_best
        self.monitor = monitor
        self.save_every = config.save_every
        self.scores: dict[int, float] = {}
        """Monitored value by step, of all validations so far."""
        self._stops = False
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run.path

    def ended(self, trainer: L.Trainer) -> bool:
        """Whether a run whose training has ended has nothing left to train; time that was up leaves something."""
        return self._stops or trainer.global_step >= self.total_steps

    def left(self, trainer: L.Trainer) -> str:
        """A sentence on what has not `ended`."""
        step = f"{trainer.global_step} of {self.total_steps}"
        return f"stopped after step {step}: the time is up; go on with --resume {self.folder}"

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to know which checkpoints are best, and whether early stopping has ended the run."""
        return {"scores": dict(self.scores), "stops": self._stops}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.scores = {int(step): float(score) for step, score in state_dict["scores"].items()}
        self._stops = bool(state_dict["stops"])

    @property
    def best_step(self) -> int | None:
        """The step with the best monitored value among the checkpoints that are whole."""
        if not self.keep_best:
            return None  # none was kept for its score
        there = {checkpoint.step_of(p) for p in checkpoint.checkpoints(self.folder) if broken(p) is None}
        scored = [step for step in self.scores if step in there]
        return min(scored, key=self._rank) if scored else None

    def _rank(self, step: int) -> tuple[bool, float, int]:
        """Sorts steps from best to worst; of equals the earlier is better."""
        return *self.monitor.rank(self.scores[step]), step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for SIGINT and SIGTERM; train no further where early stopping had ended the run that is resumed."""
        trainer.should_stop = trainer.should_stop or self._stops
        self._handlers = signals.install(self._note)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the handlers back."""
        signals.restore(self._handlers)
        self._handlers = {}

    def _note(self, number: int, frame: Any) -> None:
        """The first signal lets the step end and save, the second does not."""
        if self._signal is not None:
            signals.stop_at_once(number)
        self._signal = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        """Make Lightning validate after the last step; where no validation follows, save, and stop on a signal."""
        step = trainer.global_step
        if step >= self.total_steps:
            trainer.should_stop = True
        self._stops = trainer.should_stop and not _time_is_up(trainer)
        if self._validation_due(trainer, step):
            return  # also with a signal: resumed from a checkpoint before it, Lightning would never run this validation
        stopped = self._stopped(trainer)
        # Without validations, as often as they would come: a run that is killed is to lose no more.
        checked = not self._validating(trainer) and self._check_due(trainer, step)
        if stopped or self._due(step, checked=checked) or (trainer.should_stop and self.save_every != 0):
            self.save(trainer, step)
        if stopped:
            self._interrupt(trainer, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the score and save.

        Raises:
            UsageError: nothing measured what is monitored, which only a callback of the user's could have.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        step, name, found = trainer.global_step, self.monitor.name, trainer.callback_metrics
        if name not in found:
            hint = did_you_mean(name, found)
            raise UsageError(f"Expected --monitor to be what a validation measures ({', '.join(found)}); got '{name}'.{hint}")
        self.scores[step] = float(found[name])
        self._stops = bool(trainer.should_stop) and not _time_is_up(trainer)
        stopped = self._stopped(trainer)
        if stopped or self._due(step, checked=True) or self._wanted(trainer, step):
            self.save(trainer, step)
        if stopped:
            self._interrupt(trainer, step)

    def _interrupt(self, trainer: L.Trainer, step: int) -> None:
        self._settle(trainer)
        number = self._signal or signal.SIGTERM
        raise RunInterruptedError(
            f"Stopped by {signal.Signals(number).name} after step {step} of {self.total_steps}; everything is saved. "
            f"Go on with --resume {self.folder}.",
            number,
        )

    def _stopped(self, trainer: L.Trainer) -> bool:
        """Whether any rank got a signal; all of them decide alike."""
        here = self._signal is not None
        if trainer.world_size == 1:
            return here
        found = torch.tensor(int(here))  # on the host, and between hosts, so that nobody waits for a GPU
        module: FineTuner = trainer.lightning_module  # type: ignore[assignment]  # the only module that is trained with this
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=module.shortage.hosts())
        return bool(found)

    def _validating(self, trainer: L.Trainer) -> bool:
        return self.validates and trainer.enable_validation  # not with --trainer.limit_val_batches 0

    def _validation_due(self, trainer: L.Trainer, step: int) -> bool:
        return self._validating(trainer) and (trainer.should_stop or self._check_due(trainer, step))

    def _check_due(self, trainer: L.Trainer, step: int) -> bool:
        return step % int(trainer.val_check_batch or 1) == 0

    def _due(self, step: int, *, checked: bool) -> bool:
        if self.save_every == 0:
            return False
        if step >= self.total_steps:
            return True
        return checked if self.save_every is None else step % self.save_every == 0

    def _wanted(self, trainer: L.Trainer, step: int) -> bool:
        """Whether a step is saved for its validation: it is the best so far, where that is kept, or the last one."""
        best = self.keep_best > 0 and min(self.scores, key=self._rank) == step
        return self.save_every != 0 and (trainer.should_stop or best)

    def save(self, trainer: L.Trainer, step: int) -> None:
        """Write the checkpoint of `step`, then delete those that are neither newest nor among the best."""
        trainer.save_checkpoint(checkpoint.path_of(self.folder, step))
        self._prune(trainer, step)

    def _settle(self, trainer: L.Trainer) -> None:
        """Wait for a checkpoint that is written behind the training, on all ranks: when one ends, the others are ended.

        Raises:
            TrainingError: it could not be written, in whichever process.
        """
        io, failed = trainer.strategy.checkpoint_io, None
        try:
            if isinstance(io, FolderCheckpoint):
                io.settle()
        except Exception as error:
            failed = error
        together = trainer.world_size > 1
        if together and trainer.strategy.reduce_boolean_decision(failed is not None, all=False) and failed is None:
            raise TrainingError("The process that writes checkpoints could not; what was saved before is untouched.")
        if failed is not None:
            raise failed

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the last step where there is no memory for the next one, so that the run goes on from there."""
        if isinstance(exception, NoMemoryError) and exception.whole and trainer.global_step:
            # Lightning has counted the step that it is in; a resume would validate one step early ever after.
            counted = trainer.fit_loop.epoch_loop.batch_progress
            for count in (counted.total, counted.current):
                count.ready = count.started = count.processed = count.completed  # type: ignore[attr-defined]  # of a batch
            self.save(trainer, trainer.global_step)
            self._settle(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Delete what a run that was killed behind its last save had no time to delete: its resume has no save to do.

        A signal that came since the last step was asked for one is heard here, if the step is saved.
        """
        step = trainer.global_step
        self._settle(trainer)
        self._prune(trainer, step)
        if self._stopped(trainer):
            saved = trainer.is_global_zero and broken(checkpoint.path_of(self.folder, step)) is None
            if trainer.strategy.broadcast(saved):
                self._interrupt(trainer, step)

    def _prune(self, trainer: L.Trainer, step: int) -> None:
        if not trainer.is_global_zero:
            return
        there = checkpoint.checkpoints(self.folder)
        ranked = sorted((s for s in self.scores if any(checkpoint.step_of(p) == s for p in there)), key=self._rank)
        keep = {step, *ranked[: self.keep_best]}
        if all(checkpoint.step_of(folder) != step for folder in there):  # it is still being written
            keep.update(sorted((s for s in map(checkpoint.step_of, there) if s < step), reverse=True)[:1])
        for folder in there:
            if checkpoint.step_of(folder) not in keep:
                trainer.strategy.remove_checkpoint(folder)


def _time_is_up(trainer: L.Trainer) -> bool:
    """Whether it is the time alone that ends the run: that says nothing of the model."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning does not type it
    return any(isinstance(callback, TimeLimit) and callback.passed for callback in callbacks)


class TimeLimit(Timer):
    """Lightning's Timer for `max_time`, of each start anew: a run that goes on has as much time again.

    Args:
        duration: As Lightning takes it.
    """

    def __init__(self, duration: Any) -> None:
        super().__init__(duration, verbose=False)
        self.passed = False
        """Whether it has ended the run, on all ranks alike."""

    def _check_time_remaining(self, trainer: L.Trainer) -> None:
        before, trainer.should_stop = trainer.should_stop, False
        super()._check_time_remaining(trainer)
        self.passed = trainer.should_stop
        trainer.should_stop = before or self.passed

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class Patience(EarlyStopping):
    """Stops after so many validations none of which was better than the best before by more than the threshold.

    Args:
        config: The run's options.
        monitor: What is measured.
        say: Prints the line that tells why the run ends.
    """

    def __init__(self, config: TrainingConfig, monitor: Monitor, say: Callable[[str], None]) -> None:
        assert config.early_stopping is not None
        # Not strict: the Saver says in one sentence what is missing.
        super().__init__(monitor.name, config.early_stopping_threshold, config.early_stopping, mode=monitor.mode, strict=False)
        self.say = say

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so."""
        if self.stopping_reason_message:
            why = self.stopping_reason_message.replace("Signaling Trainer to stop", f"Stopped after step {trainer.global_step}")
            self.say(f"early stopping: {why}")
