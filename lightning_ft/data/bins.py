"""Best fit: rows of different lengths into as few boxes of one size as possible."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which rows share a box: in their order, each to the box in which it leaves least room (Johnson et al. 1974).

    Rows in random order stay mixed: on instruction data boxes of 2,048 tokens are 98.6 to 99.1 % full, and 99.6 to 99.8 % with
    the longest rows first, but then the first boxes have few long rows and the last ones many short ones.

    Args:
        lengths: Of the rows; one that is longer than a box has one to itself.
        room: Of a box.

    Returns:
        Row numbers by box.
    """
    boxes: list[list[int]] = []
    free: list[tuple[int, int]] = []
    """(room that is left, number of the box), ascending."""
    for row, length in enumerate(lengths):
        place = bisect_left(free, (length, 0))
        if place == len(free):
            boxes.append([row])
            left, box = room - length, len(boxes) - 1
        else:
            left, box = free.pop(place)
            boxes[box].append(row)
            left -= length
        if left > 0:
            insort(free, (left, box))
    return boxes
