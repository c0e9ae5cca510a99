"""Products and attention in bfloat16 by a CPU's matrix units (Intel's AMX), from `native/product.c` and `native/attention.c`.

oneDNN, which PyTorch asks for its products, is about as fast at large ones. It has no way to add an adapter's product before it
rounds, prepares anew for every document of a packed row, and is half as fast where one sums over a whole vocabulary.
Tensors are on a CPU in bfloat16, their rows in one piece, and none is empty (`kernels.matrix`).
"""

from __future__ import annotations

import ctypes
import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_ft.engine.native_kernels import has_matrix_units, library

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def work() -> bool:
    """Whether there are any, and they compute what PyTorch does."""
    made = library()
    if made is None or not has_matrix_units(made):
        return False
    a, b = (torch.linspace(-2, 2, rows * 70).sin().view(rows, 70).bfloat16() for rows in (37, 50))
    close = torch.allclose(product(a, b, across=True).float(), a.float() @ b.float().t(), rtol=2**-8 * 1.01, atol=1e-3)
    heads = a[:36].view(36, 2, 35).transpose(0, 1)
    scores = (heads.float() @ heads.float().transpose(1, 2)).masked_fill(torch.ones(36, 36).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ heads.float()).transpose(0, 1)
    return close and torch.allclose(attend(heads, heads, heads, (0, 36), 1.0)[0].float(), expected, rtol=2**-6, atol=2**-6)


def product(a: Tensor, b: Tensor, *, across: bool = False, out: Tensor | None = None) -> Tensor:
    """`a b`, or with `across` `a b^T`, summed in float32 and rounded once.

    Args:
        a: (M, K).
        b: (K, N), or (N, K).
        across: whether it is (N, K).
        out: where to put it, (M, N).

    Raises:
        ValueError: shapes do not fit.
    """
    out = a.new_empty(len(a), b.shape[0 if across else 1]) if out is None else out
    if a.shape[1] != b.shape[1 if across else 0] or out.shape != (len(a), b.shape[0 if across else 1]):
        raise ValueError(f"Expected matrices that can be multiplied; got {_shapes(a, b)} into {_shapes(out)}.")
    _multiply(a, b, out, across, (None, 0, None, 0, None), 0)
    return out


def adapted(a: Tensor, b: Tensor, u: Tensor, v: Tensor, *, across: bool = False) -> tuple[Tensor, Tensor]:
    """`a b + t v` and `t = a u`, or with `across` `a b^T + t v^T` and `t = a u^T`: a layer with its adapter beside it.

    t is rounded, as if it had been made first; the sum of both products is rounded once.

    Args:
        a: (M, K).
        b: (K, N), or (N, K).
        u: (K, R), or (R, K).
        v: (R, N), or (N, R).
        across: whether they are the latter.

    Returns:
        (M, N) and (M, R).

    Raises:
        ValueError: shapes do not fit.
    """
    deep, columns, rank = a.shape[1], b.shape[0 if across else 1], u.shape[0 if across else 1]
    shapes = [(columns, deep), (rank, deep), (columns, rank)] if across else [(deep, columns), (deep, rank), (rank, columns)]
    if [tuple(right.shape) for right in (b, u, v)] != shapes:
        raise ValueError(f"Expected matrices that can be multiplied; got {_shapes(a, b, u, v)}.")
    out, thin = a.new_empty(len(a), columns), a.new_empty(len(a), rank)
    _multiply(a, b, out, across, (*_at(u), *_at(v), thin.data_ptr()), rank)
    return out, thin


def _multiply(a: Tensor, b: Tensor, out: Tensor, across: bool, beside: tuple[Any, ...], rank: int) -> None:
    made, threads = _lib(), torch.get_num_threads()
    sizes = (*out.shape, a.shape[1])
    scratch = room(made.product_room(*sizes, rank, threads), threads)
    made.product(*_at(a), *_at(b), *_at(out), *sizes, across, *beside, rank, scratch.data_ptr(), threads)


def attend(
    query: Tensor, key: Tensor, value: Tensor, borders: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Causal attention within each document.

    Args:
        query: (H, T, D).
        key: (K, T, D), each of the K heads shared by H / K query heads.
        value: (K, T, E).
        borders: of the documents, `(0, n1, n1 + n2, ..., T)`.
        scale: factor of the scores, positive.

    Returns:
        (T, H, E), and in float32 (H, T) log sum exp of each query's scores.

    Raises:
        ValueError: shapes or borders do not fit.
    """
    heads, tokens, _ = query.shape
    alike = len(key) == len(value) and heads % len(key) == 0 and query.shape[2] == key.shape[2]
    ordered = borders[0] == 0 and borders[-1] == tokens and all(start < end for start, end in itertools.pairwise(borders))
    if not (alike and ordered and tokens == key.shape[1] == value.shape[1]):
        raise ValueError(f"Expected heads and documents of one row; got {_shapes(query, key, value)} with borders {borders}.")
    out, sums = query.new_empty(tokens, heads, value.shape[-1]), torch.empty(heads, tokens)
    scratch, threads = attention_room(borders, query.shape[-1], value.shape[-1], back=False)
    _lib().attend(*_task(query, key, value, borders), scale, out.data_ptr(), sums.data_ptr(), scratch.data_ptr(), threads)
    return out, sums


def attend_backward(
    inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, grad: Tensor, sums: Tensor, borders: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value as (T, heads, width); arguments as `attend` takes and returns them."""
    query, key, value = inputs
    dq, dk, dv = (given.new_empty(given.shape[1], len(given), given.shape[-1]) for given in inputs)
    scratch, threads = attention_room(borders, query.shape[-1], value.shape[-1], back=True)
    grad, out = grad.contiguous(), out.contiguous()
    _lib().attend_back(
        *_task(query, key, value, borders), scale, *(t.data_ptr() for t in (out, grad, sums, dq, dk, dv, scratch)), threads
    )
    return dq, dk, dv


def attention_room(borders: tuple[int, ...], depth: int, width: int, *, back: bool) -> tuple[Tensor, int]:
    """Scratch memory for all threads, and how many there are."""
    size: Callable[[int, int, int], int] = _lib().attend_back_room if back else _lib().attend_room
    threads = torch.get_num_threads()
    return room(size(max(end - start for start, end in itertools.pairwise(borders)), depth, width), threads), threads


def room(size: int, threads: int) -> Tensor:
    """Bytes for each thread. PyTorch's memory begins on a line of the cache, and its lack is an error that can be caught."""
    return torch.empty(size * threads, dtype=torch.uint8)


def _lib() -> ctypes.CDLL:
    found = library()
    assert found is not None, "asked for by `kernels.matrix`"
    return found


def _at(matrix: Tensor) -> tuple[int, int]:
    """Where a matrix begins, and how far its rows are apart."""
    return matrix.data_ptr(), matrix.stride(0)


def _task(query: Tensor, key: Tensor, value: Tensor, borders: tuple[int, ...]) -> tuple[Any, ...]:
    """For each tensor where it begins and how far heads and tokens are apart; then the documents and all sizes."""
    places = (number for t in (query, key, value) for number in (t.data_ptr(), t.stride(0), t.stride(1)))
    starts = (ctypes.c_int64 * len(borders))(*borders)
    return *places, starts, len(borders) - 1, len(query), len(key), query.shape[-1], value.shape[-1]


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)
