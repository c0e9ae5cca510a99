"""Callbacks of a run: checkpoints and signals, the record of metrics, progress in plain lines."""

from __future__ import annotations

import json
import math
import signal
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lightning_ft import checkpoint
from lightning_ft.atomic import broken, write_text
from lightning_ft.curves import read_lines
from lightning_ft.engine.sharding import summed
from lightning_ft.errors import RunInterruptedError, TrainingError, UsageError, did_you_mean
from lightning_ft.run import signals
from lightning_ft.run.checkpoint import FolderCheckpoint
from lightning_ft.run.hardware import device_use, peak_memory
from lightning_ft.run.utilisation import Work, product_rate
from lightning_ft.shortage import NoMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.schedule import Schedule
    from lightning_ft.data.stream import Stream
    from lightning_ft.module import FineTuner
    from lightning_ft.monitor import Monitor
    from lightning_ft.types import Step

MOST_APART, LINES = 10, 20
"""Steps between two lines of the log, and the fewest lines of a run that has as many steps, where the user does not say."""


class Saver(L.Callback):
    """Writes checkpoints after the validation of their step, keeps the newest and the best, and stops on signals.

    Args:
        config: The run's options.
        folder: The run folder.
        total_steps: Steps of the whole run.
        monitor: What makes a checkpoint the best.
        validates: Whether there is a validation set.
    """

    def __init__(self, config: TrainingConfig, folder: Path, total_steps: int, monitor: Monitor, *, validates: bool) -> None:
        self.folder = folder
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
        there = {checkpoint.step_of(p) for p in checkpoint.checkpoints(self.folder) if broken(p) is None}
        scored = [step for step in self.scores if step in there]
        return min(scored, key=self._rank) if scored else None

    def _rank(self, step: int) -> tuple[bool, float, int]:
        """Sorts steps from best to worst; of equals the earlier is better."""
        return *self.monitor.rank(self.scores[step]), step

    # Lightning installs its own handlers when fit begins; ours come after them and give them back.
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
        if self._validation_due(trainer, step):
            return  # also with a signal: resumed from a checkpoint before it, Lightning would never run this validation
        stopped = self._stopped(trainer)
        # Without validations, as often as they would come: a run that is killed is to lose no more.
        if stopped or self._due(step, checked=not self._validating(trainer) and self._check_due(trainer, step)):
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
        self._stops = bool(trainer.should_stop)
        stopped = self._stopped(trainer)
        if stopped or self._due(step, checked=True):
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
        return here if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(here, all=False))

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

    def save(self, trainer: L.Trainer, step: int) -> None:
        """Write the checkpoint of `step`, then delete those that are neither newest nor among the best."""
        trainer.save_checkpoint(checkpoint.path_of(self.folder, step))
        self._prune(trainer, step)

    def _settle(self, trainer: L.Trainer) -> None:
        """Wait for a checkpoint that is written behind the training, on all ranks: when one ends, the others are ended."""
        io = trainer.strategy.checkpoint_io
        if isinstance(io, FolderCheckpoint):
            io.settle()
        trainer.strategy.barrier()

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
        if self._stopped(trainer) and broken(checkpoint.path_of(self.folder, step)) is None:
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


class Recorder(L.Callback):
    """Writes metrics.jsonl and TensorBoard, checks the step's counts, and says progress in plain lines.

    Args:
        config: The run's options.
        schedule: The run's steps.
        path: The file to append to.
        say: Prints a line; None where a progress bar shows the same.
    """

    def __init__(
        self, config: TrainingConfig, schedule: Schedule | Stream, path: Path, say: Callable[[str], None] | None
    ) -> None:
        self.log_every = config.log_every or max(1, min(MOST_APART, schedule.total_steps // LINES))
        self.schedule = schedule
        self.path = path
        self.say = say
        self._reset()
        self._began = self._rate = 0.0
        self._first = 0
        self._work: Work | None = None
        self._products = 0.0
        """Operations per second of this process's matrix products."""

    def _reset(self) -> None:
        self._tokens = self._cells = self._steps = self._spared = 0
        self._supervised = self._seconds = self._cpu_seconds = 0.0
        self._loss = torch.zeros(())
        self._logs: dict[str, tuple[Tensor, Tensor]] = {}
        """Sum and count of what the objective logs."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the steps since the last line add up to, or the next line of a resumed run would be another."""

        def over_ranks(value: Any) -> Tensor:
            return summed(pl_module, torch.as_tensor(value)).cpu()

        checkpoint["recorder"] = {
            "sums": [over_ranks(value) for value in (self._loss, self._tokens, self._cells, self._spared)],
            "logs": {name: tuple(map(over_ranks, pair)) for name, pair in self._logs.items()},
            "steps": self._steps, "supervised": self._supervised, "seconds": self._seconds, "cpu_seconds": self._cpu_seconds,
        }  # fmt: skip

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take it back; what was summed over ranks goes to one of them."""
        kept = checkpoint["recorder"]
        self._steps, self._supervised = kept["steps"], kept["supervised"]
        self._seconds, self._cpu_seconds = kept["seconds"], kept["cpu_seconds"]
        if trainer.is_global_zero:
            self._loss, (self._tokens, self._cells, self._spared) = kept["sums"][0], map(int, kept["sums"][1:])
        for name, (total, count) in kept.get("logs", {}).items():  # all have the names: they will be summed over ranks again
            mine = float(trainer.is_global_zero)
            self._logs[name] = mine * total, mine * count

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the lines after the step that a resume starts from: they will be written again."""
        self._began, self._first = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero and self.path.exists():
            lines, _ = read_lines(self.path)
            kept = [line for line in lines if line["step"] <= trainer.global_step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Step, batch_idx: int) -> None:
        """Start the step's clock, and note its learning rate."""
        if self._work is None:
            module: FineTuner = pl_module  # type: ignore[assignment]  # the only module that is trained with this callback
            tokens = batch.micro[0].input_ids.numel()
            self._work = Work.of(module.model)
            self._products = product_rate(module.model, tokens, _multiplies_in(trainer, module), module.device)
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # after the step it is that of the next

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        """Add the step up, and write a line when one is due."""
        module: FineTuner = pl_module  # type: ignore[assignment]  # the only module that is trained with this callback
        self._loss = self._loss.to(module.step_loss.device) + module.step_loss
        for name, pair in module.logged.items():
            total, count = self._logs.get(name, (torch.zeros(()), torch.zeros(())))
            self._logs[name] = total.to(pair[0].device) + pair[0], count.to(pair[1].device) + pair[1]
        self._steps += 1
        self._tokens += sum(sum(micro.lengths) for micro in batch.micro)
        self._cells += sum(micro.input_ids.numel() for micro in batch.micro)
        self._spared += sum(micro.input_ids.numel() - len(micro.shared.keep) for micro in batch.micro if micro.shared)
        self._supervised += batch.totals["tokens"]
        step = trainer.global_step
        due = step % self.log_every == 0 or step >= self.schedule.total_steps
        if due:
            module.settle()
        if due and torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds += time.perf_counter() - self._start
        self._cpu_seconds += time.process_time() - self._cpu_start
        if due:
            self._check_counts(module, batch)
            self._write(trainer, self._line(module, step))
            self._reset()

    def _check_counts(self, module: FineTuner, batch: Step) -> None:
        """What the ranks really summed each term over must be what the schedule promised to divide by."""
        for (name, per), count in module.counted.items():
            total = float(summed(module, count))
            if not math.isclose(total, batch.totals[per], rel_tol=1e-5, abs_tol=1e-3):
                raise TrainingError(
                    f"Step {batch.number} summed `{name}` over {total:g} {per} where the schedule counted "
                    f"{batch.totals[per]:g}; the objective counts wrongly."
                )

    def _line(self, module: FineTuner, step: int) -> dict[str, Any]:
        tokens, cells = (
            float(summed(module, torch.tensor(float(self._tokens)))),
            float(summed(module, torch.tensor(float(self._cells)))),
        )
        use = device_use(self._cpu_seconds, self._seconds)
        spared = float(summed(module, torch.tensor(float(self._spared))))
        work = 0.0 if self._work is None else self._work(tokens - spared, self._supervised)
        possible = self._products * module.trainer.world_size * self._seconds
        return {
            "step": step,
            "epoch": round(self.schedule.epoch_of(step), 4),
            "loss": float(summed(module, self._loss)) / self._steps,
            **{name: float(summed(module, a)) / max(1e-12, float(summed(module, b))) for name, (a, b) in self._logs.items()},
            "learning_rate": self._rate,
            "grad_norm": float(module.grad_norm),
            "tokens_per_second": round(tokens / self._seconds, 1),
            "supervised_tokens_per_second": round(self._supervised / self._seconds, 1),
            **({"mfu": round(work / possible, 4)} if possible else {}),
            "padding_share": round(1 - tokens / max(1.0, cells), 4),
            "peak_memory": peak_memory(),
            **({} if use is None else {"device_use": round(use, 4)}),
            "seconds": round(time.perf_counter() - self._began, 3),
        }

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what the validation found."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        step = trainer.global_step
        self._write(trainer, {"step": step, "epoch": round(self.schedule.epoch_of(step), 4), **found})

    def _write(self, trainer: L.Trainer, line: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in line.items() if k != "step"}, step=line["step"])
        if self.say:
            done, total = line["step"], self.schedule.total_steps
            left = (time.perf_counter() - self._began) / max(1, done - self._first) * (total - done)
            known = ("loss", *self._logs, "grad_norm", "tokens_per_second")
            shown = {k: v for k, v in line.items() if k in known or (k.startswith("val_") and "/" not in k)}
            self.say(f"step {done}/{total}  " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()) + f"  {left:.0f} s left")


def _multiplies_in(trainer: L.Trainer, module: FineTuner) -> torch.dtype:
    """The type of the model's matrix products."""
    if module.gathered_in is not None:
        return module.gathered_in
    autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.precision))
    floating = (p.dtype for p in module.model.parameters() if p.is_floating_point() and p.ndim == 2)
    return autocast or next(floating, torch.float32)
