"""The product's own kernels by what they return, for tensors that hold no data: they read memory past the operators."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from lightning_ft.engine import kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class Empty:
    """Results of the right sizes, with ones for numbers: what is small is computed with and looked at."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The middle of an MLP."""
        return torch.ones_like(gate)

    def gated_backward(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both."""
        return torch.ones_like(gate), torch.ones_like(up)

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
        """A tensor whose heads lie beside each other."""
        rows, heads, length, width = x.shape
        return x.new_ones(rows, length, heads, width).transpose(1, 2)

    def likelihood(self, logits: Tensor, targets: Tensor, hits: Tensor | None, smoothing: float, *, gradient: bool) -> Tensor:
        """A number for each target."""
        return torch.ones(len(targets), dtype=torch.float32)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm, and a number for each row."""
        return torch.ones_like(x), x.new_ones(*x.shape[:-1], 1, dtype=torch.float32)

    def norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, *, trains: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of x and of the weight."""
        return torch.ones_like(x), x.new_ones(x.shape[-1], dtype=torch.float32) if trains else None

    def causal(self, scores: Tensor, block: int, start: int) -> Tensor:
        """In place."""
        return scores

    def causal_backward(self, grad: Tensor, p: Tensor, block: int, start: int) -> Tensor:
        """In place."""
        return grad


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Within the block kernels for a CPU are `Empty` where the machine has any."""
    before = kernels.on_cpu
    before(torch.empty(1, dtype=torch.bfloat16))  # they are compiled and tried now, on a tensor with data

    def on_cpu(*tensors: Tensor | None) -> kernels.CPUKernels | None:
        return None if before(*tensors) is None else Empty()

    kernels.on_cpu = on_cpu
    try:
        yield
    finally:
        kernels.on_cpu = before
