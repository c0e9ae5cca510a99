"""Tokens of rows: how long they are, what a limit cuts, and which the template refuses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_ft.types import Classified, Conversation, Preference, Text, Unpaired
from lightning_ft_datatools.records import percentiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.data.encode import Encoder
    from lightning_ft.types import Encoded, Example
    from lightning_ft_datatools.records import Record

BARS = 20
"""Bars of the histogram at most."""


def encode(encoder: Encoder, records: Sequence[Record]) -> list[Encoded | str]:
    """The tokens of each record (of a pair those with the better answer), or why the template refuses it."""
    return encoder.try_encode([_single(record.example) for record in records], [record.id for record in records])


def _single(example: Example) -> Conversation | Text:
    if isinstance(example, Preference):
        return Conversation((*example.prompt, *example.chosen))
    if isinstance(example, Unpaired):
        return Conversation((*example.prompt, *example.completion))
    return Text(example.text) if isinstance(example, Classified) else example


def check_lengths(records: Sequence[Record], encoded: Sequence[Encoded | str]) -> Iterator[tuple[str, Record, str]]:
    """Rows that the template refuses, and those that would lose tokens with a loss."""
    for record, item in zip(records, encoded, strict=True):
        if isinstance(item, str):
            yield "template", record, item
        elif item.supervised_lost:
            total = len(item.input_ids) + item.truncated
            yield "cut", record, f"{item.supervised_lost:,} of its {total:,} tokens have a loss and would be cut"


def lengths(encoded: Sequence[Encoded | str], limit: int) -> dict[str, Any]:
    """Percentiles, histogram and what the limit cuts."""
    rows = [item for item in encoded if not isinstance(item, str)]
    tokens = [len(item.input_ids) + item.truncated for item in rows]
    supervised = [item.supervised + item.supervised_lost for item in rows]
    return {
        "max_length": limit,
        "tokens": sum(tokens),
        "supervised": sum(supervised),
        "percentiles": percentiles(tokens),
        "supervised_percentiles": percentiles(supervised),
        "histogram": histogram(tokens),
        "cut_rows": sum(item.truncated > 0 for item in rows),
        "cut_tokens": sum(item.truncated for item in rows),
        "cut_supervised": sum(item.supervised_lost for item in rows),
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
