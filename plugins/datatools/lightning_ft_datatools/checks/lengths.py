"""Tokens of rows: how long they are, what a limit cuts, and which the template refuses."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.data.encode import CHUNK
from lightning_ft_datatools.records import percentiles
from lightning_ft_datatools.sides import sides

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.data.encode import Encoder
    from lightning_ft.types import Encoded
    from lightning_ft_datatools.records import Record

BARS = 20
"""Bars of the histogram at most."""


@dataclass(frozen=True, slots=True)
class Size:
    """How long a row is, without its tokens: those of many rows would fill the memory."""

    tokens: int
    supervised: int
    """Tokens with a loss."""
    cut: int
    """Tokens beyond the limit, and those with a loss among them."""
    cut_supervised: int


def sizes(encoder: Encoder, records: Sequence[Record]) -> list[Size | str]:
    """The size of each record (of a pair that with the better answer), or why the template refuses it."""
    starts = range(0, len(records), CHUNK)
    first = [sides(record.example)[0] for record in records]
    pairs = [(side.example, record.id) for side, record in zip(first, records, strict=True)]
    chunks = (pairs[start : start + CHUNK] for start in starts)
    found = itertools.chain.from_iterable(encoder.encode_chunks(chunks))
    return [item if isinstance(item, str) else _size(item) for item in found]


def _size(item: Encoded) -> Size:
    cut, lost = item.truncated, item.supervised_lost
    return Size(len(item.input_ids) + cut, item.supervised + lost, cut, lost)


def check_lengths(records: Sequence[Record], found: Sequence[Size | str]) -> Iterator[tuple[str, Record, str]]:
    """Rows that the template refuses, and those that would lose tokens with a loss."""
    for record, size in zip(records, found, strict=True):
        if isinstance(size, str):
            yield "template", record, size
        elif size.cut_supervised:
            yield "cut", record, f"{size.cut_supervised:,} of its {size.tokens:,} tokens have a loss and would be cut"


def lengths(found: Sequence[Size | str], limit: int) -> dict[str, Any]:
    """Percentiles, histogram and what the limit cuts."""
    rows = [size for size in found if not isinstance(size, str)]
    tokens, supervised = [size.tokens for size in rows], [size.supervised for size in rows]
    return {
        "max_length": limit,
        "tokens": sum(tokens),
        "supervised": sum(supervised),
        "percentiles": percentiles(tokens),
        "supervised_percentiles": percentiles(supervised),
        "histogram": histogram(tokens),
        "cut_rows": sum(size.cut > 0 for size in rows),
        "cut_tokens": sum(size.cut for size in rows),
        "cut_supervised": sum(size.cut_supervised for size in rows),
    }


def histogram(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """(from, to, rows) of bars of equal width up to the 99th percentile; the last one has all that is longer."""
    if not numbers:
        return []
    most = min(BARS, 2 + 2 * math.isqrt(len(numbers)))  # a few rows make no curve
    width = max(1, -(-(percentiles(numbers, (99,))["p99"] + 1) // most))
    bars = [0] * most
    for number in numbers:
        bars[min(most - 1, number // width)] += 1
    last = max(i for i, count in enumerate(bars) if count)
    return [(i * width, max(numbers) if i == last else (i + 1) * width - 1, bars[i]) for i in range(last + 1)]
