"""Micro-batches of half as many rows: the same rows in the same order, for less memory at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch.nn.functional as F

from lightning_ft.data.prefix import share_each
from lightning_ft.data.shapes import filled
from lightning_ft.data.targets import found_ahead
from lightning_ft.types import IGNORE_INDEX, Batch

if TYPE_CHECKING:
    from collections.abc import Sequence


def halved(micro: Sequence[Batch]) -> tuple[Batch, ...]:
    """Each micro-batch as two of them; one that is a single row, or rows that belong together, as it is."""
    return tuple(part for batch in micro for part in (_of_documents(batch) if batch.documents else _of_rows(batch)))


def cut(micro: Sequence[Batch], parts: int) -> tuple[Batch, ...]:
    """Each micro-batch as so many, a power of 2, or fewer where it has fewer rows: halves of halves."""
    for _ in range(parts.bit_length() - 1):
        micro = halved(micro)
    return tuple(micro)


def _of_rows(batch: Batch) -> tuple[Batch, ...]:
    """A padded batch; each half is only as wide as its longest row."""
    count = len(batch.input_ids)
    if count < 2 * batch.together:
        return (batch,)
    middle = (count // batch.together + 1) // 2 * batch.together
    return tuple(_rows(batch, start, end) for start, end in ((0, middle), (middle, count)))


def _rows(batch: Batch, start: int, end: int) -> Batch:
    lengths = batch.lengths[start:end]
    width = max(lengths, default=batch.input_ids.shape[1])
    part = replace(
        batch, input_ids=batch.input_ids[start:end, :width].contiguous(), labels=batch.labels[start:end, :width].contiguous(),
        position_ids=batch.position_ids[start:end, :width].contiguous(), rows=batch.rows[start:end], lengths=lengths,
        weights=None if batch.weights is None else batch.weights[start:end, :width].contiguous(),
        reference=None if batch.reference is None else batch.reference[start:end],
    )  # fmt: skip
    return found_ahead(part)


def _of_documents(batch: Batch) -> tuple[Batch, ...]:
    """A packed row, at the border of two documents that is nearest to the middle of its tokens."""
    assert batch.documents is not None
    borders = batch.documents[: len(batch.rows) + 1]  # behind them may be what only fills the row up
    if len(batch.rows) < 2 * batch.together:
        return (batch,)
    middle = min(range(batch.together, len(borders) - 1, batch.together), key=lambda i: abs(2 * borders[i] - borders[-1]))
    return tuple(_documents(batch, start, end) for start, end in ((0, middle), (middle, len(borders) - 1)))


def _documents(batch: Batch, first: int, last: int) -> Batch:
    """Documents `first` to `last` (exclusive), filled up as `collate.pack` does it."""
    assert batch.documents is not None
    start, end = batch.documents[first], batch.documents[last]
    tokens = end - start
    # The first of all, and the first of those that belong together, have all of their tokens.
    alike = () if batch.shared is None else (0, *batch.shared.alike[first + 1 : last])
    computed = tokens - sum(alike)
    extra = filled(computed) - computed
    positions = batch.position_ids[:, start:end]
    if extra:
        positions = F.pad(positions, (0, extra))
        positions[:, tokens:] = positions.new_ones(extra).cumsum(0) - 1
    borders = tuple(border - start for border in batch.documents[first : last + 1])
    part = replace(
        batch, input_ids=F.pad(batch.input_ids[:, start:end], (0, extra)), position_ids=positions,
        labels=F.pad(batch.labels[:, start:end], (0, extra), value=IGNORE_INDEX),
        documents=(*borders, tokens + extra) if extra else borders, rows=batch.rows[first:last],
        weights=None if batch.weights is None else F.pad(batch.weights[:, start:end], (0, extra)),
        lengths=batch.lengths[first:last], reference=None if batch.reference is None else batch.reference[first:last],
    )  # fmt: skip
    return share_each(found_ahead(part), alike)
