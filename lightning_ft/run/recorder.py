"""What the steps of a run were: metrics.jsonl, TensorBoard, and progress in plain lines."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch

from lightning_ft.atomic import strict, write_text
from lightning_ft.curves import read_lines
from lightning_ft.engine.sharding import summed
from lightning_ft.errors import TrainingError
from lightning_ft.run.hardware import device_use, peak_memory
from lightning_ft.run.utilisation import Work, product_rate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.schedule import Schedule
    from lightning_ft.data.stream import Stream
    from lightning_ft.module import FineTuner
    from lightning_ft.types import Step

MOST_APART, LINES = 10, 20
"""Steps between two lines of the log, and the fewest lines of a run that has as many steps, where the user does not say."""


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
        self._loss = torch.zeros(())  # a number of the host is handed to a GPU without waiting for it
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
        self._loss = self._loss + module.step_loss
        for name, pair in module.logged.items():
            total, count = self._logs.get(name, (torch.zeros(()), torch.zeros(())))
            self._logs[name] = total + pair[0], count + pair[1]
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
            file.write(json.dumps(strict(line)) + "\n")
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
