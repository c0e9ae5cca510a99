"""The product's own kernels by what they return, for tensors that hold no data: they read memory past the operators."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import torch

from lightning_ft.engine import kernels, matrix_units
from lightning_ft_plan.hollow import READ

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


class EmptyUnits:
    """The same for what takes a CPU's matrix units, with the memory that it works in."""

    def product(self, a: Tensor, b: Tensor, *, across: bool = False, out: Tensor | None = None) -> Tensor:
        """A product of torch's, which is counted."""
        return torch.mm(a, b.t() if across else b, out=out)

    def adapted(self, a: Tensor, b: Tensor, u: Tensor, v: Tensor, *, across: bool = False) -> tuple[Tensor, Tensor]:
        """Three of them."""
        thin = self.product(a, u, across=across)
        return self.product(a, b, across=across).addmm_(thin, v.t() if across else v), thin

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, borders: tuple[int, ...], scale: float
    ) -> tuple[Tensor, Tensor]:
        """Two products."""
        self._work(query, value, borders, 1, back=False)
        heads, tokens, _ = query.shape
        return query.new_ones(tokens, heads, value.shape[-1]), query.new_ones(heads, tokens, dtype=torch.float32)

    def attend_backward(
        self, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, grad: Tensor, sums: Tensor, borders: tuple[int, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Five."""
        query, _key, value = inputs
        self._work(query, value, borders, 2.5, back=True)
        tokens = query.shape[1]
        dq, dk, dv = (given.new_ones(tokens, len(given), given.shape[-1]) for given in inputs)
        return dq, dk, dv

    def _work(self, query: Tensor, value: Tensor, borders: tuple[int, ...], times: float, *, back: bool) -> None:
        """The scratch memory, and a product of as many operations as the queries and the keys up to them take."""
        heads, _, depth = query.shape
        scratch, _ = matrix_units.attention_room(borders, depth, value.shape[-1], back=back)
        pairs = sum((end - start) * (end - start + 1) // 2 for start, end in itertools.pairwise(borders))
        one = query.new_ones(1)
        torch.mm(one.expand(heads, int(times * pairs)), one.expand(int(times * pairs), depth + value.shape[-1]))
        del scratch


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Within the block kernels for a CPU are `Empty` where the machine has any.

    But not for tensors so small that they hold data: the product compares its kernels with the model's own code on such.
    """
    before = kernels.on_cpu, kernels.matrix
    before[1](torch.empty(1, dtype=torch.bfloat16))  # they are compiled and tried now, on a tensor with data

    def on_cpu(*tensors: Tensor | None) -> kernels.CPUKernels | None:
        ours = before[0](*tensors)
        return ours if ours is None or all(t is None or t.numel() * t.itemsize <= READ for t in tensors) else Empty()

    def matrix(*tensors: Tensor) -> kernels.MatrixKernels | None:
        return None if before[1](*tensors) is None else EmptyUnits()

    kernels.on_cpu, kernels.matrix = on_cpu, matrix
    try:
        yield
    finally:
        kernels.on_cpu, kernels.matrix = before
