"""The clock that all contestants carry: when training began, when each optimiser step ended, and with which loss."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from benchmarks.products import needed_flops
from benchmarks.setting import Setting


class Clock:
    """Notes the times of the first forward passes and after every optimiser step, and its loss, and writes `measure.json`."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.first: float | None = None
        """Of the first forward pass of any kind."""
        self.begin: float | None = None
        """Of the first with gradients."""
        self._watch = register_module_forward_pre_hook(self._first_forward)
        self._inside = 0
        self.losses: list[torch.Tensor] = []
        """What the backward passes of the last step, and of one that has begun, began with."""
        self.final_loss: float | None = None
        self._backward = torch.autograd.backward
        # Every framework's loss goes through here.
        torch.autograd.backward = self._noted_backward
        # torch calls these around every step of every optimiser, inside a trainer or not.
        register_optimizer_step_pre_hook(self._step_begins)
        register_optimizer_step_post_hook(self._step_ends)
        self.start = time.perf_counter()

    def _noted_backward(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(tensors, torch.Tensor) and tensors.numel() == 1:
            self.losses.append(tensors.detach().clone())
        self._backward(tensors, *args, **kwargs)

    def _step_begins(self, *_: Any) -> None:
        self._inside += 1

    def _step_ends(self, *_: Any) -> None:
        self._inside -= 1
        if not self._inside:  # an optimiser may step others inside its own step
            self.ends.append(time.perf_counter())
            if self.losses:
                self.final_loss = float(sum(self.losses))
                self.losses.clear()

    def _first_forward(self, module: torch.nn.Module, args: Any) -> None:
        now = time.perf_counter()
        self.first = self.first or now
        if torch.is_grad_enabled() and module.training:
            self.begin = now
            self._watch.remove()

    def write(self, folder: Path, setting: Setting, trained: Path) -> None:
        """Write the numbers, and where what was trained lies, so that it can be scored."""
        found = {**self.values(setting), "trained": str(trained)}
        (folder / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")

    def values(self, setting: Setting) -> dict[str, float]:
        """Numbers of the run that just ended.

        `examples_per_s` is of the whole epoch, from the first forward pass with gradients to the end of the last
        optimiser step. No step may be left out: who groups rows by length takes the longest first. Of pairs it begins with
        the first forward pass of any kind, as some compute what the reference makes of them before they train. `tokens_per_s`
        is that times the mean tokens of a row, of a pair those of both texts, without padding; `flops_per_s` is by the work
        that the rows need (`needed_flops`), whatever the contestant computes beside it. `training_s` is from the start of
        `main` to the last step: imports, loading of the model and preparation of the rows included. `final_loss` is what the
        backward passes of the last step began with.
        """
        options = setting.options
        rows, size = options["train_rows"], options["batch_size"]
        if len(self.ends) != rows // size or rows % size:
            raise RuntimeError(f"Expected {rows / size} steps of {size} rows (one epoch), counted {len(self.ends)} steps.")
        if self.first is None or self.begin is None:
            raise RuntimeError("Expected a forward pass with gradients, saw none.")
        if self.final_loss is None or not math.isfinite(self.final_loss):
            raise RuntimeError(f"Expected a finite loss in the last step, saw {self.final_loss}.")
        examples = rows / (self.ends[-1] - (self.first if setting.pairs else self.begin))
        return {
            "examples_per_s": examples,
            "tokens_per_s": examples * options["train_tokens"] / rows,
            "training_s": self.ends[-1] - self.start,
            "flops_per_s": examples * needed_flops(options) / rows,
            "steps": len(self.ends),
            "final_loss": self.final_loss,
        }


def arguments() -> tuple[Setting, Path]:
    """The setting and the folder to write, from the command line of a contestant."""
    return Setting.load(sys.argv[1]), Path(sys.argv[2])
