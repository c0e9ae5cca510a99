"""Output layer and cross entropy in one, chunk by chunk, with the gradient made in the forward pass.

For hidden states `h` (N, D), weight `W` (V, D), bias `b` (V,) and targets `y` (N,)

    z_i = h_i W^T + b        (capped models: z_i <- c tanh(z_i / c))
    nll_i = log sum_v exp(z_iv) - z_{i, y_i}
    d nll_i / d z_iv = softmax(z_i)_v - [v = y_i]

so that the gradient of a chunk is known as soon as its logits are: at most `chunk` rows of logits exist at a time. With label
smoothing e (Szegedy et al. 2016, arXiv:1512.00567, section 7), in training only, the target is spread over the vocabulary:

    nll_i = log sum_v exp(z_iv) - (1 - e) z_{i, y_i} - e / V sum_v z_iv
    d nll_i / d z_iv = softmax(z_i)_v - (1 - e) [v = y_i] - e / V

The idea is that of the fused linear cross entropy of Liger Kernel (arXiv 2410.10989, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_ft.engine import kernels

_MIB = 2**20


@dataclass(slots=True)
class Gradients:
    """Where the gradients of one pass are summed; None where no gradient is wanted."""

    hidden: Tensor | None
    """(N, D), written."""
    weight: Tensor | None
    """(V, D), added to."""
    bias: Tensor | None
    """(V,), added to."""

    @classmethod
    def like(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, bool, bool]) -> Gradients:
        """Buffers for the gradients that are `needed`; weights of low precision are summed in float32."""
        wide = wide_dtype(weight.dtype)
        return cls(
            torch.empty_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=wide) if needed[1] else None,
            torch.zeros_like(bias, dtype=wide) if needed[2] and bias is not None else None,
        )


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which logits of `dtype` are exponentiated and summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_chunk(vocabulary: int, device: torch.device) -> int:
    """Positions per chunk, from the machine's memory (never from what is free now: runs have to repeat themselves).

    On a CPU a position costs 2 bytes per vocabulary entry and the chunk takes 64 MiB, but at most 512 positions: the weight
    is read once per chunk, so that small ones are slow, and so are oneDNN's products of more rows. On a GPU a position
    costs 6 bytes (its logits in 2 and in 4 bytes) and the chunk takes a 64th of its memory, between 128 MiB and 1 GiB.
    """
    if device.type == "cuda":
        budget = min(max(torch.cuda.get_device_properties(device).total_memory // 64, 128 * _MIB), 1024 * _MIB)
        return max(16, budget // (6 * vocabulary) // 16 * 16)
    return min(512, max(32, 64 * _MIB // (2 * vocabulary) // 32 * 32))


def _block(vocabulary: int, chunk: int, device: torch.device) -> int:
    """Positions whose softmax is computed at a time: on a CPU as many as stay in its cache, on a GPU the chunk."""
    return max(1, min(chunk, 4 * _MIB // (4 * vocabulary))) if device.type == "cpu" else chunk


def chunked_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    cap: float | None = None,
    chunk: int | None = None,
    into: Gradients | None = None,
    row_weights: Tensor | None = None,
    hits: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of each target, (N,) in nats, without any graph.

    Args:
        hidden: (N, D).
        weight: (V, D); the products are made in its type (under autocast, in autocast's).
        bias: (V,) or None.
        targets: (N,) int64.
        cap: soft cap of the logits.
        chunk: positions per chunk; None: `default_chunk`.
        into: where to put the gradients of `sum_i row_weights_i nll_i`.
        row_weights: (N,); None: all 1.
        hits: (N,) bool, set to whether the most likely token was the target.
        smoothing: e.
    """
    device = hidden.device.type
    dtype = weight.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.no_grad(), torch.autocast(device, enabled=False):
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        size = _even(len(targets), chunk or default_chunk(weight.shape[0], hidden.device))
        logits = _Logits(size, weight, bias, cap, smoothing)
        nll = torch.empty(len(targets), dtype=logits.wide.dtype, device=hidden.device)
        for start in range(0, len(targets), size):
            rows = slice(start, start + size)
            x = hidden[rows].to(dtype)
            logits.of(x)
            own_hits, scale = (None if given is None else given[rows] for given in (hits, row_weights))
            nll[rows] = logits.likelihood(targets[rows], own_hits, into, scale)
            if into is not None:
                logits.backward(x, into, rows, scale)
    return nll


def _even(positions: int, most: int) -> int:
    """Chunks of about equal size rather than full ones and a rest: the multiple of 32 that makes as many of them."""
    chunks = max(1, -(-positions // most))
    return max(1, min(most, -(-positions // (32 * chunks)) * 32, positions))


class _Logits:
    """The logits of one chunk in the type of the products, and of a block of it in the wide type; used for every chunk."""

    def __init__(self, size: int, weight: Tensor, bias: Tensor | None, cap: float | None, smoothing: float) -> None:
        self.smoothing = smoothing
        self.weight, self.bias, self.cap = weight, bias, cap
        self.low = weight.new_empty(size, weight.shape[0])
        self.size = _block(weight.shape[0], size, weight.device)
        wide = wide_dtype(weight.dtype)
        self.in_place = wide == weight.dtype
        self.kernels = kernels.of(self.low) if cap is None else None
        shape = (0 if self.kernels else self.size, weight.shape[0])
        self.wide = self.low if self.in_place else weight.new_empty(shape, dtype=wide)
        self.tanh = None if cap is None else torch.empty(shape, dtype=self.wide.dtype, device=weight.device)

    def of(self, x: Tensor) -> None:
        """Fill `low` with the logits of `x` (n, D)."""
        low = self.low[: len(x)]
        ours = kernels.matrix(x, self.weight, low) if self.bias is None else None
        if ours is not None:
            ours.product(x, self.weight, across=True, out=low)
        elif self.bias is None:
            torch.mm(x, self.weight.t(), out=low)
        else:
            torch.addmm(self.bias, x, self.weight.t(), out=low)

    def likelihood(self, targets: Tensor, hits: Tensor | None, into: Gradients | None, scale: Tensor | None) -> Tensor:
        """The chunk's nll, block by block; with `into`, `low` becomes the gradient of each row's nll."""
        if self.kernels is not None:
            low = self.low[: len(targets)]
            found = self.kernels.likelihood(low, targets, hits, self.smoothing, gradient=into is not None)
            if into is not None and into.bias is not None:
                into.bias.add_(low.sum(0, dtype=found.dtype) if scale is None else scale.to(low.dtype) @ low)
            return found
        nll = torch.empty(len(targets), dtype=self.wide.dtype, device=targets.device)
        for start in range(0, len(targets), self.size):
            rows = slice(start, min(start + self.size, len(targets)))
            low, chosen = self.low[rows], targets[rows, None]
            wide = low if self.in_place else self.wide[: len(low)].copy_(low)
            tanh = None
            if self.tanh is not None and self.cap is not None:
                tanh = self.tanh[: len(low)]
                torch.div(wide, self.cap, out=tanh).tanh_()
                torch.mul(tanh, self.cap, out=wide)
            if hits is None:
                top = wide.amax(-1, keepdim=True)
            else:
                top, best = wide.max(-1, keepdim=True)
                torch.eq(best, chosen, out=hits[rows, None])
            picked = wide.gather(1, chosen)
            if self.smoothing:
                picked = (1 - self.smoothing) * picked + self.smoothing * wide.mean(-1, keepdim=True)
            # One kernel for exponentials, sum and quotient; the largest probability is 1 / sum exp(z - top).
            torch.softmax(wide, -1, out=wide)
            nll[rows] = (top - wide.amax(-1, keepdim=True).log() - picked)[:, 0]
            if into is not None:
                # Weights of rows go to the products: those have D columns, the logits V.
                wide.scatter_add_(1, chosen, wide.new_full(chosen.shape, self.smoothing - 1))
                if self.smoothing:
                    wide.sub_(self.smoothing / wide.shape[1])
                if tanh is not None:
                    wide.mul_(tanh.square_().neg_().add_(1))
                if into.bias is not None:
                    into.bias.add_(wide.sum(0) if scale is None else scale[rows].to(wide.dtype) @ wide)
                if not self.in_place:
                    low.copy_(wide)
        return nll

    def backward(self, x: Tensor, into: Gradients, rows: slice, scale: Tensor | None) -> None:
        """Add what follows from the gradient in `low`, each row times its `scale`, to `into`."""
        low = self.low[: len(x)]
        factor = None if scale is None else scale[:, None]
        if into.hidden is not None:
            own = into.hidden[rows]
            ours = kernels.matrix(low, self.weight, own)
            if ours is not None:
                ours.product(low, self.weight, out=own)
            elif own.dtype == low.dtype:
                torch.mm(low, self.weight, out=own)
            else:
                own.copy_(low @ self.weight)
            if factor is not None:
                own.mul_(factor)
        if into.weight is not None:
            x = x if factor is None else (x * factor).to(low.dtype)
            if into.weight.dtype == low.dtype:
                into.weight.addmm_(low.t(), x)
            elif low.dtype == torch.float16:  # a sum over so many positions may be more than it holds
                wide = torch.mm(low.t(), x, out_dtype=torch.float32) if low.is_cuda else low.t().float() @ x.float()
                into.weight.add_(wide)
            else:
                into.weight.add_(low.t() @ x)


class _Sum(torch.autograd.Function):
    """`sum_i w_i nll_i`: its gradient is linear in one scalar, so that all of it is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weights: Tensor | None,
        cap: float | None,
        chunk: int | None,
        smoothing: float,
    ) -> Tensor:
        grads = None
        if any(ctx.needs_input_grad[:3]):
            grads = Gradients.like(hidden, weight, bias, ctx.needs_input_grad[:3])
        nll = chunked_nll(
            hidden, weight, bias, targets, cap=cap, chunk=chunk, into=grads, row_weights=row_weights, smoothing=smoothing
        )
        if grads is not None:
            ctx.save_for_backward(grads.hidden, grads.weight, grads.bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return (nll if row_weights is None else nll * row_weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the gradient of a large head must not exist twice. A second backward is refused by torch, which
        # sees that saved tensors have changed.
        hidden, weight, bias = (None if saved is None else saved.mul_(grad) for saved in ctx.saved_tensors)
        return (
            hidden,
            None if weight is None else weight.to(ctx.dtypes[0]),
            None if bias is None else bias.to(ctx.dtypes[1]),
            None,
            None,
            None,
            None,
            None,
        )


class _PerToken(torch.autograd.Function):
    """`nll_i`, one by one.

    With a frozen head the gradient is made in the forward pass and scaled by row in the backward pass. A trained head's
    gradient depends on the scales, so that the chunks are computed again then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        cap: float | None,
        chunk: int | None,
    ) -> Tensor:
        ctx.options = {"cap": cap, "chunk": chunk}
        ctx.frozen = not any(ctx.needs_input_grad[1:3])
        into = Gradients.like(hidden, weight, bias, (True, False, False)) if ctx.frozen and ctx.needs_input_grad[0] else None
        nll = chunked_nll(hidden, weight, bias, targets, into=into, **ctx.options)
        if into is not None:
            ctx.save_for_backward(into.hidden)
        elif not ctx.frozen:
            ctx.save_for_backward(hidden, weight, bias, targets)
            device = hidden.device.type
            ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.frozen:
            (made,) = ctx.saved_tensors
            return made * grad[:, None].to(made.dtype), None, None, None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        into = Gradients.like(hidden, weight, bias, ctx.needs_input_grad[:3])
        device, dtype, enabled = ctx.autocast
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            chunked_nll(hidden, weight, bias, targets, into=into, row_weights=grad, **ctx.options)
        return (
            into.hidden,
            None if into.weight is None else into.weight.to(weight.dtype),
            None if into.bias is None else into.bias.to(bias.dtype),
            None,
            None,
            None,
        )


def summed_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weights: Tensor | None = None,
    *,
    cap: float | None = None,
    chunk: int | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """`sum_i w_i nll_i` as a scalar with gradient; arguments as for `chunked_nll`."""
    loss: Tensor = _Sum.apply(hidden, weight, bias, targets, row_weights, cap, chunk, smoothing)  # type: ignore[no-untyped-call]  # of torch
    return loss


def token_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, cap: float | None = None, chunk: int | None = None
) -> Tensor:
    """`nll_i`, (N,), with gradient; arguments as for `chunked_nll`."""
    nll: Tensor = _PerToken.apply(hidden, weight, bias, targets, cap, chunk)  # type: ignore[no-untyped-call]  # of torch
    return nll
