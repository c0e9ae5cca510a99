"""Whether there are kernels of our own for a tensor: on a GPU, where Triton is."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol, cast

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Kernels(Protocol):
    """What `triton_kernels` has, with what is said of it there."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """`silu(gate) * up`."""

    def gated_backward(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
        """Rotary positions applied to every head."""

    def likelihood(self, logits: Tensor, targets: Tensor, hits: Tensor | None, smoothing: float, *, gradient: bool) -> Tensor:
        """Negative log-likelihoods of the targets."""


def of(tensor: Tensor) -> Kernels | None:
    """The kernels for a tensor; None where there are none. `plan` puts others here to rehearse a GPU's way."""
    if torch.compiler.is_compiling():  # which makes kernels of its own of the plain way
        return None
    return _triton() if tensor.is_cuda and tensor.dtype != torch.float64 else None


@functools.cache
def _triton() -> Kernels | None:
    """None where there is no Triton (PyTorch for Windows comes without)."""
    try:
        from lightning_ft.engine import triton_kernels
    except ImportError:
        return None
    return cast("Kernels", triton_kernels)
