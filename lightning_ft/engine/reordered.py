"""Both products with a frozen output layer on a CPU, its weight laid out once as oneDNN wants it.

A plain product brings the weight into that order on each call, for every chunk anew. With both orders kept (W for the
logits, W^T for the gradient of the hidden states) the products of a large vocabulary take 5 to 15 % less time, at the price
of twice the weight's memory.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

ROWS = 256
"""Rows of a product that the order is made for; also the most that these products are fastest with."""
_SMALLEST = 8 * 2**20
"""Entries of a weight from which on it pays."""
_MEMORY_SHARE = 16
"""The copies take at most one part in so many of the machine's memory."""

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Reordered:
    """Products with `weight` (V, D) as it is now; each order is made when it is first needed."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach()
        self._version = weight._version
        self._column = self._weight[:, 0].clone()

    def still(self, weight: Tensor) -> bool:
        """Whether `weight` has not changed since: torch counts changes, but not those by way of `.data`, as in a merge."""
        return weight._version == self._version and torch.equal(weight[:, 0], self._column)

    @functools.cached_property
    def _forward(self) -> Tensor:
        return _ordered(self._weight)

    @functools.cached_property
    def _backward(self) -> Tensor:
        return _ordered(self._weight.t().contiguous())

    def logits(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(n, D) to x W^T + b, (n, V)."""
        return _product(x, self._forward, bias)

    def hidden(self, grad: Tensor) -> Tensor:
        """(n, V) to grad W, (n, D)."""
        return _product(grad, self._backward, None)


def reordered(weight: Tensor) -> Reordered | None:
    """The products for a weight, kept for as long as it lives; None where they do not pay or oneDNN does not have them."""
    if weight.requires_grad or type(weight.data) is not Tensor or weight.device.type != "cpu":
        return None
    if weight.dtype != torch.bfloat16 or weight.numel() < _SMALLEST or 2 * weight.nbytes > _memory() // _MEMORY_SHARE:
        return None
    if not _available():
        return None
    found: Reordered | None = _kept[weight] if weight in _kept else None  # noqa: SIM401  # its `get` has no types
    if found is None or not found.still(weight):
        found = _kept[weight] = Reordered(weight)
    return found


@functools.cache
def _available() -> bool:
    """Whether this torch has the two operators, for bfloat16 on this processor, and they multiply."""
    x, weight = torch.eye(4, 8, dtype=torch.bfloat16), torch.arange(128.0).view(16, 8).bfloat16()
    try:
        return torch.equal(_product(x, _ordered(weight), None), x @ weight.t())
    except (AttributeError, RuntimeError, TypeError):
        return False


def _ordered(weight: Tensor) -> Tensor:
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return made


def _product(x: Tensor, ordered: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, ordered, bias, "none", [], "")  # no activation after it
    return made


@functools.cache
def _memory() -> int:
    """Bytes of the machine's memory; 0 where it cannot be asked for."""
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
