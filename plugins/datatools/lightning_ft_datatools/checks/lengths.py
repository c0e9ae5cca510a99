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
    """Of all its texts: two where answers are compared."""
    longest: int
    """Of its longest text, which the limit is for."""
    supervised: int
    """Tokens with a loss."""
    cut: int
    """Tokens beyond the limit, and those with a loss among them."""
    cut_supervised: int


def sizes(encoder: Encoder, records: Sequence[Record]) -> list[Size | str]:
    """The size of each record, or why the template refuses it."""
    texts = [(side.example, record.id) for record in records for side in sides(record.example)]
    chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
    found = itertools.chain.from_iterable(encoder.encode_chunks(chunks))
    return [_size(list(itertools.islice(found, len(sides(record.example))))) for record in records]


def _size(texts: Sequence[Encoded | str]) -> Size | str:
    whole = []
    for text in texts:
        if isinstance(text, str):
            return text
        whole.append(text)
    lengths = [len(text.input_ids) + text.truncated for text in whole]
    cut, lost = sum(text.truncated for text in whole), sum(text.supervised_lost for text in whole)
    return Size(sum(lengths), max(lengths), sum(text.supervised for text in whole) + lost, cut, lost)


def check_lengths(records: Sequence[Record], found: Sequence[Size | str]) -> Iterator[tuple[str, Record, str]]:
    """Rows that the template refuses, and those that would lose tokens with a loss."""
    for record, size in zip(records, found, strict=True):
        if isinstance(size, str):
            yield "template", record, size
        elif size.cut_supervised:
            yield "cut", record, f"{size.cut_supervised:,} of its {size.tokens:,} tokens have a loss and would be cut"


def lengths(found: Sequence[Size | str], limit: int, positions: int) -> dict[str, Any]:
    """Percentiles and histogram of what the limit is for, and what it cuts.

    Args:
        found: as `sizes` makes them.
        limit: tokens that a text may have.
        positions: tokens that the model has places for.
    """
    rows = [size for size in found if not isinstance(size, str)]
    longest, supervised = [size.longest for size in rows], [size.supervised for size in rows]
    return {
        "max_length": limit,
        "positions": positions,
        "tokens": sum(size.tokens for size in rows),
        "supervised": sum(supervised),
        "percentiles": percentiles(longest),
        "supervised_percentiles": percentiles(supervised),
        "histogram": histogram(longest),
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
