"""The clock of the GPU suites: events on the device behind every optimiser step, in whatever framework, and the memory's peak.

A GPU works behind the program that feeds it, and a clock that waits for it would change what it measures. So nothing here
waits before the last step. On a CPU, where a step is done when it returns, the same clock reads the time.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from benchmarks.setting import Setting

PEAK = 989e12
"""Products of bfloat16 numbers and their sums per second on an H100 or H200 (SXM, without sparsity), by its data sheet."""
WORK = {"lora": 4, "full": 6}
"""Operations for each token and each parameter of a matrix product: forward 2, gradient of the inputs 2, of the weights 2,
which a frozen base does not need. Attention, adapters, and what is computed a second time are not counted."""


class GpuClock:
    """Marks the end of every optimiser step and notes its loss; behind the last one it writes `measure.json`.

    Args:
        setting: its `steps`, the first `warmup_steps` (two or more) of which are not measured, and its `product_parameters`.
        folder: where `measure.json` goes.
        method: `lora` or `full`.
        batch_tokens: tokens of a step.
        ends: whether the process ends there, without an error. What a framework does behind its last step, as writing 16 GB
            of weights, is not measured.
    """

    def __init__(self, setting: Setting, folder: Path, method: str, batch_tokens: int, *, ends: bool) -> None:
        self.options, self.folder, self.method, self.ends = setting.options, folder, method, ends
        self.batch_tokens = batch_tokens
        self.marks: list[Any] = []
        self.losses: list[list[torch.Tensor]] = [[]]
        """Of each backward pass of each step."""
        self._forward = self._seen = 0
        self._watch = register_module_forward_pre_hook(self._count)
        # torch calls these around every step of every optimiser, inside a trainer or not.
        self._inside = 0
        register_optimizer_step_pre_hook(self._begins)
        register_optimizer_step_post_hook(self._ends)
        self._backward = torch.autograd.backward
        # Every framework's loss goes through here, and no framework has to be asked for it, which would make it wait.
        torch.autograd.backward = self._noted_backward

    def _count(self, module: torch.nn.Module, args: Any) -> None:
        """Note the tokens of a forward pass."""
        if isinstance(module, torch.nn.Embedding):
            self._forward = args[0].numel()

    def _noted_backward(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        """Note a loss; recomputed layers come here, too, with a list of tensors."""
        if isinstance(tensors, torch.Tensor):
            self.losses[-1].append(tensors.detach().clone())
            self._seen += self._forward if len(self.marks) == 1 else 0
        self._backward(tensors, *args, **kwargs)

    def _begins(self, *_: Any) -> None:
        self._inside += 1

    def _ends(self, *_: Any) -> None:
        self._inside -= 1
        if not self._inside:  # an optimiser may step others inside its own step
            self._stepped()

    def _stepped(self) -> None:
        if torch.cuda.is_available():
            mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # no annotations
            mark.record()
            self.marks.append(mark)
        else:
            self.marks.append(time.perf_counter())
        if len(self.marks) == 2:
            self._watch.remove()  # it would cost time in every layer
        self.losses.append([])
        if len(self.marks) != self.options["steps"]:
            return
        self.write()
        if self.ends:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def check(self) -> None:
        """Called behind the run.

        Raises:
            RuntimeError: it made fewer steps than the setting says, so that nothing was written.
        """
        if len(self.marks) != self.options["steps"]:
            raise RuntimeError(f"Expected {self.options['steps']} optimiser steps, counted {len(self.marks)}.")

    def milliseconds(self) -> list[float]:
        """Of each step but the first: from the end of the one before to its own."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in pairs]
        return [1e3 * (b - a) for a, b in pairs]

    def write(self) -> None:
        """Numbers of the steps behind the warm-up, and the memory's peak of the whole process.

        Raises:
            RuntimeError: a step had another number of tokens than `batch_tokens`, or a loss is not finite.
        """
        if self._seen != self.batch_tokens:
            raise RuntimeError(f"Expected {self.batch_tokens} tokens in the second step, counted {self._seen}.")
        durations = self.milliseconds()[self.options["warmup_steps"] - 1 :]
        # Before the first step a framework may have tried its ways of computing a loss.
        self.losses[0] = self.losses[0][-len(self.losses[1]) :]
        losses = [float(sum(passes)) for passes in self.losses if passes]
        if not all(map(math.isfinite, losses)):
            raise RuntimeError(f"Expected finite losses, got {losses}.")
        rate = self.batch_tokens * len(durations) / sum(durations) * 1e3
        found = {
            "tokens_per_s": rate, "step_ms": statistics.median(durations), "step_ms_least": min(durations),
            "step_ms_greatest": max(durations), "steps_ms": durations,
            "mfu": rate * WORK[self.method] * self.options["product_parameters"] / PEAK,
            **peaks(), "first_loss": losses[0], "final_loss": losses[-1], "steps": len(losses),
        }  # fmt: skip
        (self.folder / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def peaks() -> dict[str, float]:
    """Most memory so far in MB of 2**20 bytes: that of tensors, and what torch took for them; of a CPU that of the process."""
    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    else:
        allocated = reserved = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_allocated_mb": allocated / 2**20, "peak_reserved_mb": reserved / 2**20}


def arguments() -> tuple[Setting, Path, dict[str, Any]]:
    """Setting, folder to write, and the contestant's words `NAME=VALUE` of the suite, values as in YAML."""
    setting, folder, *words = sys.argv[1:]
    pairs = (word.split("=", 1) for word in words)
    return Setting.load(setting), Path(folder), {name: yaml.safe_load(value) for name, value in pairs}
