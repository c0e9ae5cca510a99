"""Whether there are kernels of our own for a tensor: on a GPU, where Triton is; on a CPU in bfloat16, where a C compiler is."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol, cast

import torch

if TYPE_CHECKING:
    from torch import Tensor


_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Kernels(Protocol):
    """What `triton_kernels` and `native_kernels` have, with what is said of it there."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """`silu(gate) * up`."""

    def gated_backward(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
        """Rotary positions applied to every head."""

    def likelihood(self, logits: Tensor, targets: Tensor, hits: Tensor | None, smoothing: float, *, gradient: bool) -> Tensor:
        """Negative log-likelihoods of the targets."""


class CPUKernels(Kernels, Protocol):
    """What `native_kernels` has beside: a GPU has torch's own."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """RMSNorm, and the factor of each row."""

    def norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, *, trains: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of x and of the weight."""

    def causal(self, scores: Tensor, block: int, start: int) -> Tensor:
        """The softmax of what queries see, in place."""

    def causal_backward(self, grad: Tensor, p: Tensor, block: int, start: int) -> Tensor:
        """The gradient of the scores, in place."""


class MatrixKernels(Protocol):
    """What `matrix_units` has, with what is said of it there."""

    def product(self, a: Tensor, b: Tensor, *, across: bool = False, out: Tensor | None = None) -> Tensor:
        """A matrix product."""

    def adapted(self, a: Tensor, b: Tensor, u: Tensor, v: Tensor, *, across: bool = False) -> tuple[Tensor, Tensor]:
        """A matrix product with an adapter's added to it, and what lies between the adapter's matrices."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, borders: tuple[int, ...], scale: float
    ) -> tuple[Tensor, Tensor]:
        """Causal attention within documents, and what its backward pass needs beside the result."""

    def attend_backward(
        self, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, grad: Tensor, sums: Tensor, borders: tuple[int, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of query, key and value."""


def of(tensor: Tensor) -> Kernels | None:
    """The kernels for a tensor; None where there are none. A rehearsal of a GPU's way puts others here."""
    if torch.compiler.is_compiling():  # which makes kernels of its own of the plain way
        return None
    if tensor.is_cuda:
        return _triton() if tensor.dtype != torch.float64 else None
    return on_cpu(tensor)


def on_cpu(*tensors: Tensor | None) -> CPUKernels | None:
    """The kernels for tensors that lie in a CPU's memory in bfloat16; None where one of them does not, or there are none.

    They read memory by its address, which a subclass (a DTensor, a FakeTensor) has not, or not in this way.

    A rehearsal puts others here, for tensors that hold no data.
    """
    for t in tensors:
        if t is not None and (t.dtype != torch.bfloat16 or t.device.type != "cpu" or type(t) not in _PLAIN):
            return None
    return None if torch.compiler.is_compiling() else _native()


def matrix(*tensors: Tensor) -> MatrixKernels | None:
    """Those that take a CPU's matrix units by themselves; None where `on_cpu` has none, or rows do not lie in one piece.

    A rehearsal puts others here, for tensors that hold no data.
    """
    if on_cpu(*tensors) is None or any(t.numel() == 0 or (t.stride(-1) != 1 and t.shape[-1] != 1) for t in tensors):
        return None
    return _matrix()


@functools.cache
def _triton() -> Kernels | None:
    """None where there is no Triton (PyTorch for Windows comes without), or no compiler for what starts its kernels."""
    try:
        from lightning_ft.engine import triton_kernels

        x = torch.linspace(-4, 4, 64, device="cuda")
        agrees = torch.allclose(triton_kernels.gated(x, x), torch.nn.functional.silu(x) * x, atol=1e-5)
    except Exception:  # it comes from Triton, the compiler or the driver; the plain ways do the same
        return None
    return cast("Kernels", triton_kernels) if agrees else None


@functools.cache
def _native() -> CPUKernels | None:
    """None where they cannot be compiled."""
    from lightning_ft.engine import native_kernels

    return cast("CPUKernels", native_kernels) if native_kernels.library() is not None else None


@functools.cache
def _matrix() -> MatrixKernels | None:
    """None where the processor has no matrix units, or they compute something else than PyTorch does."""
    from lightning_ft.engine import matrix_units

    return cast("MatrixKernels", matrix_units) if matrix_units.work() else None
