"""Runs that find no memory at a chosen place."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_ft.module import FineTuner
from lightning_ft.types import Batch, Step


def no_room(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines of torch.")


def arm(put: Callable[[Any, str, Any], object], place: str, at: int = 0, most: int = 0, rank: int = 0) -> None:
    """Let memory run out on a rank: in the optimiser's first update, or from a step on in micro-batches of too many rows.

    Args:
        put: `setattr`, or what undoes it later.
        place: `forward`, `backward` (when the last layers have their gradients), `optimizer` (when it has made its states) or
            `updated` (when it has changed parameters).
        at: 0-based step.
        most: Rows for which there is room.
        rank: Where.
    """
    micro = FineTuner._micro_loss
    states: Any = torch.optim.AdamW._init_group
    done: list[bool] = []

    def micro_loss(self: FineTuner, batch: Batch, step: Step) -> Tensor:
        short = self.global_rank == rank and step.number >= at and len(batch.rows) > most
        if short and place == "forward":
            no_room()
        if not short or place != "backward":
            return micro(self, batch, step)
        (layer,) = (part for name, part in self.model.named_modules() if name.endswith("layers.0"))

        def fail_behind(part: Any, args: Any, output: Any) -> None:
            (output if isinstance(output, Tensor) else output[0]).register_hook(no_room)

        handle = layer.register_forward_hook(fail_behind)
        try:
            return micro(self, batch, step)
        finally:
            handle.remove()

    def init_group(self: Any, group: Any, *rest: Any) -> Any:
        found = states(self, group, *rest)
        if int(os.environ.get("RANK", "0")) == rank and group is self.param_groups[place == "updated"] and not done:
            done.append(True)
            no_room()
        return found

    put(FineTuner, "_micro_loss", micro_loss)
    if place in ("optimizer", "updated"):
        put(torch.optim.AdamW, "_init_group", init_group)  # once torch.compile was used, it is not Adam's
