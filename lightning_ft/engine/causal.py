"""Causal attention of one long document in bfloat16 on a CPU, by matrix products.

Torch's fused kernel for CPUs spends most of its time outside of its products; here the products are oneDNN's, at the
speed of the processor's bfloat16 units, and the softmax is computed in float32 and rounded once. As in FlashAttention-2 (Dao
2023, arXiv:2307.08691, section 3.1) queries are taken in blocks, each against the keys up to its end, and the probabilities
are computed again in the backward pass, so that memory grows with T and not with T^2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_ft.data.collate import shape_step

SHORTEST = 128
"""Tokens from which a document gains by it."""
BLOCK = 256
"""Queries per block."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
    """`softmax(s Q K^T + M) V` with M = 0 on and below the diagonal and minus infinity above it.

    Args:
        query: (1, H, T, D) in bfloat16.
        key: (1, K, T, D), each of the K heads shared by H / K query heads.
        value: (1, K, T, E).
        scaling: s; None: D ** -0.5.

    Returns:
        (1, H, T, E).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: Tensor = _Causal.apply(query[0], key[0], value[0], scale)  # type: ignore[no-untyped-call]  # of torch
    return out[None]


class _Causal(torch.autograd.Function):
    """The products of one document.

    With P the probabilities and G the gradient of the output O = P V:

    dV = P^T G,  dP = G V^T,  dS = P (dP - rowsum(P dP)),  dQ = s dS K,  dK = s dS^T Q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(H, T, D), (K, T, D), (K, T, E) to (H, T, E)."""
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        heads, length, _ = query.shape
        q, k, v = _prepared(query, key, value, scale)
        out = query.new_empty(heads, length, value.shape[-1])
        for start, end in _blocks(length, q.shape[2]):
            part = torch.bmm(_probabilities(_rows(q, start, end), k[:, :end], start), v[:, :end])
            out[:, start:end] = part.view(heads, end - start, -1)[:, : length - start]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        heads, length, width = query.shape
        q, k, v = _prepared(query, key, value, ctx.scale)
        g = _grouped(grad, len(k), k.shape[1])
        dq = torch.empty_like(query)
        wide = torch.promote_types(k.dtype, torch.float32)  # in which sums over several blocks are kept
        dk, dv = (torch.zeros_like(tensor, dtype=wide) for tensor in (k, v))
        for start, end in _blocks(length, q.shape[2]):
            queries, grads = _rows(q, start, end), _rows(g, start, end)
            p = _probabilities(queries, k[:, :end], start)
            dv[:, :end] += torch.bmm(p.transpose(1, 2), grads)
            ds = torch._softmax_backward_data(torch.bmm(grads, v[:, :end].transpose(1, 2)), p, -1, p.dtype)
            part = torch.bmm(ds, k[:, :end]).view(heads, end - start, width)
            dq[:, start:end] = part[:, : length - start]
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), queries)  # the queries are scaled
        return dq.mul_(ctx.scale), dk[:, :length].to(key.dtype), dv[:, :length].to(value.dtype), None


def _prepared(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries as (K, H / K, N, D), keys and values as (K, N, .), with N >= T from few different lengths.

    oneDNN compiles a product for every shape that it meets. What is filled up comes last, so no query before it looks there.
    """
    length = query.shape[1]
    padded = length + -length % shape_step(length)
    return _grouped(query * scale, len(key), padded), _filled(key, padded), _filled(value, padded)


def _filled(tensor: Tensor, length: int) -> Tensor:
    """(., T, .) with zeros up to `length`, contiguous."""
    return F.pad(tensor, (0, 0, 0, length - tensor.shape[1])).contiguous()


def _grouped(tensor: Tensor, groups: int, length: int) -> Tensor:
    """(H, T, D) as (K, H / K, length, D): the query heads of each key head together."""
    return _filled(tensor, length).view(groups, -1, length, tensor.shape[-1])


def _blocks(length: int, padded: int) -> list[tuple[int, int]]:
    """Borders of the blocks of queries; none that is only filling."""
    return [(start, min(start + BLOCK, padded)) for start in range(0, length, BLOCK)]


def _rows(tensor: Tensor, start: int, end: int) -> Tensor:
    """Block `start:end` of (K, R, N, D) as (K, R * block, D), so that the R heads share one product."""
    return tensor[:, :, start:end].reshape(len(tensor), -1, tensor.shape[-1])


def _probabilities(queries: Tensor, keys: Tensor, start: int) -> Tensor:
    """(K, R * block, end) attention weights of scaled queries from number `start` on over all keys so far."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    block = keys.shape[1] - start
    diagonal = scores.view(len(keys), -1, block, keys.shape[1])[..., start:]
    diagonal += torch.full((block, block), -math.inf, dtype=scores.dtype).triu_(1)
    return torch.softmax(scores, -1)
