"""Causal attention of a packed row in bfloat16 on a CPU, by matrix products, every document by itself.

Where the processor has matrix units that is one call of `matrix_units`. Elsewhere: torch's fused kernel for CPUs spends most of
its time outside of its products; here the products are oneDNN's, at the speed of the processor's bfloat16 units, and
the softmax is computed in float32 and rounded once. As in FlashAttention-2 (Dao 2023, arXiv:2307.08691, section 3.1) queries
are taken in blocks, each against the keys up to its end. The probabilities of short documents are kept for the backward
pass, where they take less room than the layer's other activations; those of longer ones are computed again, so that memory
grows with T and not with T^2.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_ft.data.shapes import shape_step
from lightning_ft.engine import kernels

BLOCK = 256
"""Queries per block."""
KEPT = 512
"""Tokens up to which the probabilities of a document are kept."""
_STEP = 16  # fill up at least to a multiple of this


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, borders: tuple[int, ...], scaling: float | None = None
) -> Tensor:
    """`softmax(s Q K^T + M) V` of each document, with M = 0 on and below the diagonal and minus infinity above it.

    Args:
        query: (1, H, T, D) in bfloat16.
        key: (1, K, T, D), each of the K heads shared by H / K query heads.
        value: (1, K, T, E).
        borders: of the documents, `(0, n1, n1 + n2, ..., T)`.
        scaling: s; None: D ** -0.5.

    Returns:
        (1, T, H, E).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    on_units = scale > 0 and kernels.matrix(query, key, value) is not None
    function: Any = _OnMatrixUnits if on_units else _Causal
    out: Tensor = function.apply(query[0], key[0], value[0], borders, scale)
    return out[None]


def _matrix_units(*tensors: Tensor) -> kernels.MatrixKernels:
    found = kernels.matrix(*tensors)
    assert found is not None, "asked by causal_attention"
    return found


class _OnMatrixUnits(torch.autograd.Function):
    """The same as `_Causal`, all of it in one call."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, borders: tuple[int, ...], scale: float) -> Tensor:
        """(H, T, D), (K, T, D), (K, T, E) to (T, H, E)."""
        out, sums = _matrix_units(query, key, value).attend(query, key, value, borders, scale)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.borders, ctx.scale = borders, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value, which lie in memory as (T, heads, width), as layers make them."""
        *inputs, out, sums = ctx.saved_tensors
        query, key, value = inputs
        found = _matrix_units(query, key, value).attend_backward((query, key, value), out, grad, sums, ctx.borders, ctx.scale)
        return *(whole.transpose(0, 1) for whole in found), None, None


class _Causal(torch.autograd.Function):
    """The products of all documents of a row.

    With P the probabilities of a document and G the gradient of its output O = P V:

    dV = P^T G,  dP = G V^T,  dS = P (dP - rowsum(P dP)),  dQ = dS (s K),  dK = s dS^T Q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, borders: tuple[int, ...], scale: float) -> Tensor:
        """(H, T, D), (K, T, D), (K, T, E) to (T, H, E)."""
        heads, length, _ = query.shape
        out = query.new_empty(length, heads, value.shape[-1])
        ctx.borders, ctx.scale = borders, scale
        kept: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for start, end in itertools.pairwise(borders):
                part, tokens = out[start:end], end - start
                q = _filled(query[:, start:end])
                k = _filled(key[:, start:end], scale)
                v = _filled(value[:, start:end])
                kept += (q, k, v)
                for first, last in _blocks(tokens, q.shape[1]):
                    p = _probabilities(_rows(q, first, last, len(k)), k[:, :last], first)
                    if tokens <= KEPT:
                        kept.append(p)
                    made = torch.bmm(p, v[:, :last]).view(heads, last - first, -1)
                    part[first:last].copy_(made[:, : tokens - first].transpose(0, 1))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value, which lie in memory as (T, heads, width), as layers make them."""
        kept = iter(ctx.saved_tensors)
        grads: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for start, end in itertools.pairwise(ctx.borders):
                q, k, v = next(kept), next(kept), next(kept)
                if not grads:
                    grads = [t.new_empty(len(grad), len(t), t.shape[-1]) for t in (q, k, v)]
                dq, dk, dv = (whole[start:end] for whole in grads)
                tokens, filled = end - start, q.shape[1]
                g = _filled(grad[start:end].transpose(0, 1))
                blocks = _blocks(tokens, filled)
                parts = []
                for first, last in blocks:
                    queries, given = (_rows(t, first, last, len(k)) for t in (q, g))
                    keys, values = k[:, :last], v[:, :last]
                    p = next(kept) if tokens <= KEPT else _probabilities(queries, keys, first)
                    ds = _scores_gradient(torch.bmm(given, values.transpose(1, 2)), p, last - first, first)
                    made = torch.bmm(ds, keys).view(len(q), last - first, -1)
                    dq[first:last].copy_(made[:, : tokens - first].transpose(0, 1))
                    parts.append((torch.bmm(ds.transpose(1, 2), queries), torch.bmm(p.transpose(1, 2), given)))
                sum_k, sum_v = (_summed(column)[:, :tokens].transpose(0, 1) for column in zip(*parts, strict=True))
                dk.copy_(sum_k.mul_(ctx.scale))
                dv.copy_(sum_v)
        return *(whole.transpose(0, 1) for whole in grads), None, None


def _filled(tensor: Tensor, scale: float = 1.0) -> Tensor:
    """(., T, .) times `scale`, contiguous, with zeros up to one of few different lengths.

    oneDNN compiles a product for every shape that it meets. What is filled up comes last, so no query before it looks there.
    """
    length = tensor.shape[1]
    padded = length + -length % max(_STEP, shape_step(length))
    out = tensor.new_empty(len(tensor), padded, tensor.shape[-1])
    torch.mul(tensor, scale, out=out[:, :length]) if scale != 1 else out[:, :length].copy_(tensor)
    if padded > length:
        out[:, length:].zero_()
    return out


def _blocks(length: int, padded: int) -> list[tuple[int, int]]:
    """Borders of the blocks of queries; none that is only filling."""
    return [(start, min(start + BLOCK, padded)) for start in range(0, length, BLOCK)]


def _rows(tensor: Tensor, start: int, end: int, groups: int) -> Tensor:
    """Block `start:end` of (H, N, D) as (K, R * block, D), so that the R heads of a group share one product."""
    return tensor.view(groups, -1, *tensor.shape[1:])[:, :, start:end].reshape(groups, -1, tensor.shape[-1])


def _probabilities(queries: Tensor, keys: Tensor, start: int) -> Tensor:
    """(K, R * block, end) attention weights of queries from number `start` on over all scaled keys so far."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    block = keys.shape[1] - start
    ours = kernels.on_cpu(scores)
    if ours is not None and scores.shape[2] % _STEP == 0:
        return ours.causal(scores, block, start)
    diagonal = scores.view(len(keys), -1, block, keys.shape[1])[..., start:]
    diagonal += _above_diagonal(block, scores.dtype)
    return torch.softmax(scores, -1)


def _scores_gradient(grad: Tensor, p: Tensor, block: int, start: int) -> Tensor:
    """From the gradient of the probabilities p to that of the scores."""
    ours = kernels.on_cpu(grad, p)
    if ours is not None and p.shape[2] % _STEP == 0:
        return ours.causal_backward(grad, p, block, start)
    found: Tensor = torch._softmax_backward_data(grad, p, -1, p.dtype)
    return found


@functools.lru_cache(maxsize=64)
def _above_diagonal(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size) minus infinity above the diagonal, 0 elsewhere."""
    return torch.full((size, size), -math.inf, dtype=dtype).triu_(1)


def _summed(parts: tuple[Tensor, ...]) -> Tensor:
    """The sum of (K, n, .) with growing n, in float32 where there is more than one."""
    if len(parts) == 1:
        return parts[0]
    out = parts[-1].to(torch.promote_types(parts[-1].dtype, torch.float32))
    for part in parts[:-1]:
        out[:, : part.shape[1]] += part
    return out
