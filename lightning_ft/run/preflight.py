"""Before training: run what is largest once, so that what can fail fails in the first minute.

The longest micro-batch, an optimiser step, the longest evaluation batch and a save are executed for real; the peak
memory is then measured, not predicted, and the time follows from a few ordinary steps. On a CPU the process grows further
in training: oneDNN keeps what it compiled for every shape of a batch. That is measured per shape and added for the shapes
of the schedule that the preflight has not met.
"""

from __future__ import annotations

import copy
import gc
import math
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch

from lightning_ft import layout
from lightning_ft.engine.model import probing
from lightning_ft.errors import TrainingError, out_of_memory
from lightning_ft.run.checkpoint_io import FolderCheckpoint
from lightning_ft.run.hardware import peak_memory
from lightning_ft.run.heap import heap_in_use
from lightning_ft.shortage import RunAgainError, memory_advice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning_ft.data.datamodule import FineTuneData
    from lightning_ft.module import FineTuner
    from lightning_ft.types import Step

LOOKED_AT = 2000
"""Steps of the schedule that are searched for the largest micro-batch and averaged for the time."""
TIMED = 3
"""Ordinary steps that are timed, each twice: the first time compiles kernels for its shapes, which most steps find ready."""


@dataclass(frozen=True)
class Estimate:
    """What the preflight measured."""

    peak_memory: int
    """Bytes: of the GPU where there is one, else of the process, with what batches of other shapes will add."""
    step_seconds: float
    """Mean over ordinary steps."""
    validation_seconds: float
    save_seconds: float
    total_seconds: float
    """Training, validations and saves of the whole run, which begin when the preflight has ended."""

    def sentence(self) -> str:
        """For the log."""
        minutes, seconds = divmod(round(self.total_seconds), 60)
        return (
            f"preflight: peak memory {self.peak_memory / 2**30:.2f} GiB, {self.step_seconds:.3g} s a step, "
            f"training will take about {minutes} min {seconds:02d} s"
        )


class Preflight(L.Callback):
    """Runs before the first step of a fresh run; leaves weights, optimiser and random state as they were.

    Args:
        data: Builds steps and evaluation batches.
        folder: The run folder, for the trial save.
        save_every: Steps between saves; None: with every validation.
        done: Called with the estimate.
    """

    def __init__(self, data: FineTuneData, folder: Path, save_every: int | None, done: Callable[[Estimate], None]) -> None:
        self.data = data
        self.folder = folder
        self.save_every = save_every
        self.done = done

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run it, unless this is a resumed run: then the largest batch has been through already."""
        if trainer.global_step > 0:
            return
        module: FineTuner = pl_module  # type: ignore[assignment]  # the only module that is trained with this callback
        devices = [module.device] if module.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                estimate = self._run(trainer, module)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise TrainingError(memory_advice(error)) from error
            raise
        self.done(estimate)

    def _run(self, trainer: L.Trainer, module: FineTuner) -> Estimate:
        numbers = self.data.known_steps(LOOKED_AT)
        rank = module.data_place[0]
        # The same on all ranks: with a sharded model each pass of one waits for the others, which make as many in that step.
        largest = max(numbers, key=self._largest)
        self._step(trainer, module, self.data.build(largest, rank))
        met, grown = self._shapes(largest, rank), []
        timed = [numbers[len(numbers) * i // TIMED] for i in range(min(TIMED, len(numbers)))]
        seconds = tokens = 0.0
        for number in timed:
            before, new = heap_in_use(), self._shapes(number, rank) - met
            first = self._timed_step(trainer, module, number)
            if before is not None and new:
                grown.append(((heap_in_use() or before) - before) / len(new))
            met |= new
            seconds += min(first, self._timed_step(trainer, module, number))
            tokens += self._tokens(number)
        mean_tokens = sum(self._tokens(number) for number in numbers) / len(numbers)
        step_seconds = seconds / tokens * mean_tokens
        validation = self._validate(module)
        save = self._save(trainer)
        self._forget(trainer, module)
        steps = self.data.total_steps
        checks = math.ceil(steps / self.data.eval_every)
        validations = checks if self.data.has_validation else 0
        saves = checks if self.save_every is None else math.ceil(steps / self.save_every) if self.save_every else 0
        total = steps * step_seconds + validations * validation + saves * save
        peak = peak_memory() + self._growth(module, numbers, met, grown)
        if trainer.world_size > 1:  # of the rank that needs most
            peak = int(trainer.strategy.reduce(torch.tensor(float(peak), device=module.device), reduce_op="max"))
        return Estimate(peak, step_seconds, validation, save, total)

    def _growth(self, module: FineTuner, numbers: range, met: set[tuple[int, int]], grown: list[float]) -> int:
        """Bytes that the shapes of the schedule that were not met will add; nothing on a GPU, which keeps none."""
        if module.device.type != "cpu" or not grown:
            return 0
        rank = module.data_place[0]
        unmet = set().union(*(self._shapes(number, rank) for number in numbers)) - met
        return round(len(unmet) * max(0.0, sum(grown) / len(grown)))

    def _shapes(self, number: int, rank: int) -> set[tuple[int, int]]:
        """(rows, tokens) of the micro-batches that a rank has in a step."""
        return {self.data.shape(micro) for micro in self.data.schedule.step(number).ranks[rank]}

    def _largest(self, number: int) -> int:
        """Tokens, filling or padding included, of the largest micro-batch that any rank has in a step."""
        return max(math.prod(self.data.shape(micro)) for rank in self.data.schedule.step(number).ranks for micro in rank)

    def _tokens(self, number: int) -> float:
        """Tokens, filling or padding included, of all micro-batches of a step."""
        return float(sum(math.prod(self.data.shape(micro)) for rank in self.data.schedule.step(number).ranks for micro in rank))

    def _timed_step(self, trainer: L.Trainer, module: FineTuner, number: int) -> float:
        start = time.perf_counter()
        self._step(trainer, module, self.data.build(number, module.data_place[0]))
        return time.perf_counter() - start

    def _step(self, trainer: L.Trainer, module: FineTuner, step: Step) -> None:
        """One whole optimiser step that changes nothing: gradients of zero at a learning rate of zero."""
        step = module.shortage.cut(step).to(module.device)
        module.zero_grad(set_to_none=True)
        module.method.before_step(module.model, 0)
        while True:
            torch.manual_seed(0)
            try:
                loss: Any = trainer.strategy.training_step(step, 0)
                trainer.strategy.backward(loss, None)
                break
            except RunAgainError:
                loss = None  # holds the graph
            module.run_again()
        for optimizer in trainer.optimizers:
            # All of a group, as some optimisers count or remember in it.
            before = [copy.deepcopy({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = 0.0
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.zero_()
            optimizer.step()
            for group, values in zip(optimizer.param_groups, before, strict=True):
                group.update(values)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _validate(self, module: FineTuner) -> float:
        """Seconds of a whole validation, from its largest batch."""
        batches = self.data.validation_plan()
        if not batches:
            return 0.0
        lengths = self.data.tables["validation"].padded
        cells = [int(lengths[list(batch)].max()) * len(batch) for batch in batches]
        largest = max(range(len(batches)), key=lambda i: cells[i])
        with probing(module):
            start = time.perf_counter()
            module.make_validation().add(module.model, self.data.validation_batch(batches[largest]).to(module.device))
            seconds = time.perf_counter() - start
        return seconds * sum(cells) / cells[largest]

    def _save(self, trainer: L.Trainer) -> float:
        io = trainer.strategy.checkpoint_io
        if self.save_every == 0 or not trainer.is_global_zero or not isinstance(io, FolderCheckpoint):
            return 0.0
        module: FineTuner = trainer.lightning_module  # type: ignore[assignment]  # the only one with this callback
        if module.shards is not None:
            return 0.0  # every process would have to take part
        trial = self.folder / layout.CHECKPOINTS / ".tmp-preflight"
        start = time.perf_counter()
        try:
            io.save_checkpoint({"optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers]}, trial)
            io.settle()
            return time.perf_counter() - start
        finally:
            shutil.rmtree(trial, ignore_errors=True)

    def _forget(self, trainer: L.Trainer, module: FineTuner) -> None:
        """Take back what the trial left: optimiser states, gradients, counters."""
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        module.zero_grad(set_to_none=True)
        gc.collect()
