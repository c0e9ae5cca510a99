"""Whether a step was finite, asked without making the host wait for the GPU.

The optimiser itself leaves everything as it is where the gradient is not finite (torch's fused optimisers read `found_inf` on
the GPU, as its GradScaler lets them), so that the host may learn of it one step later.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from lightning_ft.engine.loss import score_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from lightning_ft.types import Batch


class Doubt:
    """A step of which the host does not know yet whether it was finite.

    Args:
        optimizer: One of those that `can_wait` allows; told to leave everything as it is if the step was not.
        norm: Of the step's gradient, on a GPU.
        micro: The step's losses and micro-batches.
        step: Its 0-based number.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, norm: Tensor, micro: list[tuple[Tensor, Batch]], step: int) -> None:
        self.micro, self.step = micro, step
        bad = (~torch.isfinite(norm)).float()
        optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by the fused step
        self._bad = torch.empty((), pin_memory=True)
        self._bad.copy_(bad, non_blocking=True)
        self._known: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # of torch
        self._known.record()

    @staticmethod
    def can_wait(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> bool:
        """Whether the optimiser can be told on the GPU; sharded parameters would need the answer on every rank."""
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        return bool(fused) and all(p.is_cuda and not isinstance(p, DTensor) for p in params)

    def finite(self) -> bool:
        """The answer; waits for the step, behind which the next one stands in the GPU's queue already."""
        self._known.synchronize()
        return not bool(self._bad)


def not_finite(model: nn.Module, micro: Sequence[tuple[Tensor, Batch]], step: int) -> str:
    """What to tell of a step with a loss or gradient that is not finite; asked by all ranks.

    Args:
        model: Scores single rows again, if it lies whole in this process.
        micro: This rank's losses and micro-batches; where no loss is bad, it was the gradient, or another rank's loss.
        step: 0-based number of the step.
    """
    bad = [batch for loss, batch in micro if not torch.isfinite(loss)]
    rows = [row for batch in bad for row in _bad_rows(model, batch)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, rows)
        rows = [row for of_rank in found for row in of_rank]
    what = "loss" if rows else "gradient"
    rows = list(dict.fromkeys(rows or [row for _, batch in micro for row in batch.rows]))
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return (
        f"The {what} of step {step + 1} is not finite (rows {', '.join(rows[:8])}{more}); nothing was updated. "
        "Lower --learning_rate, or look at these rows; --precision fp32 rules out overflow."
    )


def _bad_rows(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    """The rows whose own likelihood is not finite; all of them where a single one cannot be told."""
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return batch.rows  # other ranks are not here to bring their shards
    scores = score_rows(model, batch)
    bad = [row for row, (nll, *_) in zip(batch.rows, scores, strict=False) if not math.isfinite(nll)]
    return tuple(bad) if len(scores) == len(batch.rows) and bad else batch.rows
