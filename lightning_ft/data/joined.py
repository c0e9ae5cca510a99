"""Which things hang together, directly or through others."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def joined(count: int, pairs: Iterable[tuple[int, int]]) -> array[int]:
    """For each of the numbers 0 to `count - 1` the smallest one that it is joined with (union-find, path halving)."""
    parent = array("q", range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return array("q", map(root, range(count)))
