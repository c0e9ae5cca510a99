"""To which lengths packed rows are filled up, so that a run meets few different shapes.

oneDNN compiles its products for every shape that it meets, and the heap keeps holes in the sizes of each: about 0.02 s and
10 to 40 MB a shape for a model of 50 million parameters. Filling costs what a token costs.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MOST = 12
"""Different lengths in a run, but for rows that are longer than all that were looked at."""
COST = 100
"""Tokens of filling that a further length has to save."""


def shape_step(tokens: int) -> int:
    """A multiple to fill a row of so many tokens up to that gives eight lengths for each doubling."""
    return max(8, 1 << max(0, tokens.bit_length() - 4))


def filled(tokens: int, lengths: Sequence[int] = ()) -> int:
    """The length that a row of so many tokens is filled up to: one of `lengths` (ascending) where one is long enough."""
    place = bisect_left(lengths, tokens)
    return lengths[place] if place < len(lengths) else tokens + -tokens % shape_step(tokens)


def best_lengths(tokens: Sequence[int] | NDArray[np.int64], weight: float = 1.0) -> tuple[int, ...]:
    """The lengths, at most `MOST`, that make filling and new shapes cost least together, exactly (dynamic programming).

    Args:
        tokens: Of each packed row.
        weight: How many rows of the run each of them stands for.

    Returns:
        Ascending multiples of 8, or of a 16th of `shape_step` for long rows; the last one holds the longest row.
    """
    if not len(tokens):
        return ()
    true = np.asarray(tokens, dtype=np.int64)
    grid = max(8, shape_step(int(true.max())) // 16)
    values, place = np.unique(-(-true // grid) * grid, return_inverse=True)
    # rows[j] and sums[j]: of the rows that belong to values[:j].
    rows = np.append(0, np.cumsum(np.bincount(place)))
    sums = np.append(0, np.cumsum(np.bincount(place, weights=true)))
    # cost[i, j]: of filling the rows of values[i:j] up to values[j - 1].
    ends = np.append(0, values)
    cost = weight * (ends * (rows - rows[:, None]) - (sums - sums[:, None])) + COST
    cost[np.tril_indices(len(ends))] = np.inf
    best, chosen = cost[0], []
    totals = [best[-1]]
    for _ in range(1, min(MOST, len(values))):
        through = best[:, None] + cost
        chosen.append(through.argmin(0))
        best = through.min(0)
        totals.append(best[-1])
    found, end = [], len(values)
    for before in reversed(chosen[: int(np.argmin(totals))]):
        found.append(end)
        end = int(before[end])
    return tuple(int(values[j - 1]) for j in (end, *reversed(found)))
