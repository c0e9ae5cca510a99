"""Whether a step was finite, asked without making the host wait for the GPU.

The optimiser itself leaves everything as it is where the gradient is not finite (torch's fused optimisers read `found_inf` on
the GPU, as its GradScaler lets them), so that the host may learn of it one step later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

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
