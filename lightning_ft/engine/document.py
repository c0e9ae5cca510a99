"""Attention of one document, by the fastest way that its device, its type and its layer allow."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

LONG = 1024
"""Tokens of a document from which on cuDNN's kernel, which is made anew for every length, is worth it on a GPU."""
_FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
]  # fmt: skip


def attend(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, sliding_window: int | None,
    softcap: float | None, s_aux: Tensor | None,
) -> Tensor:  # fmt: skip
    """Causal attention; arguments as in `engine.attention.documents_attention`, of one document.

    Returns:
        (1, H, T, E) in the type of `value`.
    """
    dtype, length = value.dtype, query.shape[2]
    mask = _window_mask(length, sliding_window, query.device)
    narrow = query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    with torch.autocast("cpu", enabled=False) if narrow else contextlib.nullcontext():
        plain = softcap is None and s_aux is None
        if narrow:  # oneDNN would compile and keep kernels for every length; 32 bits need none and take no longer
            query, key, value = query.float(), key.float(), value.float()
        if plain:
            grouped = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        else:
            out = _explicit(query, key, value, mask, dropout, scaling, softcap, s_aux)
        return out.to(dtype)


def attend_alike(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float | None) -> Tensor:
    """Causal attention of documents of one length on a GPU, side by side as a batch, by cuDNN where it takes them.

    Args:
        query: (1, H, N * length, D).
        key: (1, K, N * length, D).
        value: (1, K, N * length, D).
        length: of each document.
        scaling: factor of the scores; None: D ** -0.5.

    Returns:
        (1, N * length, H, D).
    """
    q, k, v = (x[0].view(x.shape[1], -1, length, x.shape[3]).transpose(0, 1) for x in (query, key, value))
    with sdpa_kernel(_FASTEST_FIRST, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).reshape(1, -1, *out.shape[1:2], out.shape[3])


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(length, length) True where a position may look; None where that is plainly causal."""
    if window is None or length <= window:
        return None
    position = torch.arange(length, device=device)
    back = position[:, None] - position
    return (back >= 0) & (back < window)


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None,
    softcap: float | None, s_aux: Tensor | None,
) -> Tensor:  # fmt: skip
    """One document with its scores written out, for what scaled dot product attention does not have."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    length = query.shape[2]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(1, -1, length, 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], -1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide)[..., :length].to(value.dtype)
    return F.dropout(weights, dropout) @ value
