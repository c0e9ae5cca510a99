"""Triton kernels of the hot path on a GPU: each reads its inputs once, computes in float32 and rounds once.

What eager PyTorch does in three to eight passes over memory is one here. Imported only where there is a CUDA device, whose
builds of PyTorch come with Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_ROW = 4096
"""Entries of a vocabulary that are read at a time."""


@triton.jit
def _gated(gate, up, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    g = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated_back(grad, gate, up, d_gate, d_up, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    d = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(d_gate + at, (d * u * s * (1 + g * (1 - s))).to(d_gate.dtype.element_ty), mask=mask)
    tl.store(d_up + at, (d * g * s).to(d_up.dtype.element_ty), mask=mask)


@triton.jit
def _rotated(
    x, out, cos, sin, heads: tl.constexpr, length, x_row, x_head, x_token, out_row,
    out_head, out_token, c_row, c_token, half, BACK: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) // length
    token = tl.program_id(0).to(tl.int64) % length
    col = tl.arange(0, HALF)
    inside = col < half
    table = row * c_row + token * c_token + col
    c1 = tl.load(cos + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    c2 = tl.load(cos + table + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    s1 = tl.load(sin + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    s2 = tl.load(sin + table + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    for first in range(0, heads, HEADS):
        head = first + tl.arange(0, HEADS)
        mask = (head < heads)[:, None] & inside[None, :]
        at = row * x_row + token * x_token + head[:, None] * x_head + col[None, :]
        a = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x + at + half, mask=mask, other=0.0).to(tl.float32)
        if BACK:
            low = a * c1 + b * s2
            high = b * c2 - a * s1
        else:
            low = a * c1 - b * s1
            high = b * c2 + a * s2
        to = row * out_row + token * out_token + head[:, None] * out_head + col[None, :]
        tl.store(out + to, low.to(out.dtype.element_ty), mask=mask)
        tl.store(out + to + half, high.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _likelihood(
    logits, targets, nll, hits, stride, size: tl.constexpr, smoothing, GRADIENT: tl.constexpr,
    HITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * stride
    target = tl.load(targets + row)
    picked = tl.load(here + target).to(tl.float32)
    col = tl.arange(0, BLOCK)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    plain = tl.full((), 0.0, tl.float32)
    best = tl.full((), 0, tl.int64)
    for start in range(0, size, BLOCK):
        mask = start + col < size
        z = tl.load(here + start + col, mask=mask, other=float("-inf")).to(tl.float32)
        most = tl.max(z, 0)
        if HITS:
            best = tl.where(most > top, start + tl.argmax(z, 0).to(tl.int64), best)
        higher = tl.maximum(top, most)
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
        plain += tl.sum(tl.where(mask, z, 0.0), 0)
        top = higher
    mean = plain / size
    tl.store(nll + row, top + tl.log(total) - (1 - smoothing) * picked - smoothing * mean)
    if HITS:
        tl.store(hits + row, (best == target).to(hits.dtype.element_ty))
    if GRADIENT:
        tl.debug_barrier()  # the target's logit is read above by every thread before one of them writes over it
        for start in range(0, size, BLOCK):
            mask = start + col < size
            z = tl.load(here + start + col, mask=mask, other=float("-inf")).to(tl.float32)
            p = tl.exp(z - top) / total - smoothing / size
            p = tl.where(start + col == target, p - (1 - smoothing), p)
            tl.store(here + start + col, p.to(logits.dtype.element_ty), mask=mask)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; both contiguous and of one shape."""
    out = torch.empty_like(gate)
    _gated[(triton.cdiv(gate.numel(), _BLOCK),)](gate, up, out, gate.numel(), BLOCK=_BLOCK)
    return out


def gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; all three contiguous and of one shape."""
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    _gated_back[(triton.cdiv(gate.numel(), _BLOCK),)](grad, gate, up, d_gate, d_up, gate.numel(), BLOCK=_BLOCK)
    return d_gate, d_up


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Rotary positions applied to every head, or taken back from a gradient.

    Args:
        x: (B, H, T, D), its last dimension contiguous.
        cos: (B or 1, T, D), contiguous.
        sin: the same.
        back: multiply by the transposed matrix, as the backward pass does.

    Returns:
        (B, H, T, D) over memory of (B, T, H, D), which attention kernels read without a copy.
    """
    rows, heads, length, width = x.shape
    out = x.new_empty(rows, length, heads, width).transpose(1, 2)
    grid = (rows * length,)
    half = width // 2
    _rotated[grid](
        x, out, cos, sin, heads, length, x.stride(0), x.stride(1), x.stride(2), out.stride(0), out.stride(1), out.stride(2),
        cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1), half, BACK=back, HALF=triton.next_power_of_2(half),
        HEADS=min(triton.next_power_of_2(heads), 16),
    )  # fmt: skip
    return out


def likelihood(logits: Tensor, targets: Tensor, hits: Tensor | None, smoothing: float, *, gradient: bool) -> Tensor:
    """Negative log-likelihoods of the targets; with `gradient` the logits become their gradient.

    Args:
        logits: (N, V), rows contiguous, of 16 or 32 bits.
        targets: (N,) int64.
        hits: (N,) bool, set to whether the most likely token was the target.
        smoothing: share of the target that is spread over the vocabulary.
        gradient: whether the logits are written over.

    Returns:
        (N,) float32.
    """
    nll = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    _likelihood[(len(targets),)](
        logits, targets, nll, nll if hits is None else hits, logits.stride(0), logits.shape[1], smoothing, GRADIENT=gradient,
        HITS=hits is not None, BLOCK=_ROW,
    )  # fmt: skip
    return nll
