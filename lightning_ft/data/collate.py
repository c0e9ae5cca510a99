"""From encoded rows to the tensors of a micro-batch: padded on the right, or laid end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lightning_ft.types import IGNORE_INDEX, Batch, Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def pad(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Rows under each other, padded on the right to the longest; a causal model needs no attention mask for that.

    A row of several texts becomes as many rows of the batch.
    """
    rows, together = _texts(rows)
    lengths = tuple(len(row.input_ids) for row in rows)
    shape = (len(rows), max(lengths))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    for i, row in enumerate(rows):
        input_ids[i, : lengths[i]] = row.input_ids
        labels[i, : lengths[i]] = row.labels
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions.copy()),
        documents=None,
        rows=tuple(row.row for row in rows),
        weights=_weights(rows, shape, packed=False),
        lengths=lengths,
        together=together,
    )


def pack(rows: Sequence[Encoded], length: int | None = None, pad_id: int = 0) -> Batch:
    """Rows end to end in one row; positions restart with each text and `documents` has the borders.

    Args:
        rows: What to lay end to end.
        length: Tokens that the packed row is filled up to, by a document that nothing is trained on and that is in neither
            `rows` nor `lengths`: few different shapes mean few compiled kernels. None: it is not filled.
        pad_id: Token id of the filling.
    """
    rows, together = _texts(rows)
    lengths = tuple(len(row.input_ids) for row in rows)
    extra = 0 if length is None else length - sum(lengths)
    parts = [*rows, Encoded([pad_id] * extra, [IGNORE_INDEX] * extra, row="")] if extra else list(rows)
    borders = (0, *np.cumsum([len(part.input_ids) for part in parts]).tolist())
    return Batch(
        input_ids=_joined([np.asarray(part.input_ids, dtype=np.int64) for part in parts]),
        labels=_joined([np.asarray(part.labels, dtype=np.int64) for part in parts]),
        position_ids=_joined([np.arange(len(part.input_ids), dtype=np.int64) for part in parts]),
        documents=borders,
        rows=tuple(row.row for row in rows),
        weights=_weights(parts, (1, borders[-1]), packed=True),
        lengths=lengths,
        together=together,
    )


def muted(batch: Batch) -> Batch:
    """The batch with weight 0 everywhere: keeps a rank without rows of its own in step with the others.

    The weights are zeroed rather than the labels, so that every parameter still gets a (zero) gradient.
    """
    batch.weights = torch.zeros(batch.input_ids.shape, dtype=torch.float32)
    batch.lengths = ()
    return batch


def _texts(rows: Sequence[Encoded]) -> tuple[Sequence[Encoded], int]:
    """Every text of the rows, and how many of them each row has."""
    together = max(1, len(rows[0].parts))
    if together == 1:
        return rows, 1
    return [text for row in rows for text in row.texts()], together


def _joined(parts: list[NDArray[np.int64]]) -> torch.Tensor:
    """(1, T) from the rows' own arrays."""
    return torch.from_numpy(np.concatenate(parts))[None]


def _weights(rows: Sequence[Encoded], shape: tuple[int, int], *, packed: bool) -> torch.Tensor | None:
    """(B, T) loss weights, or None where all are 1."""
    if all(row.weight == 1 and row.weights is None for row in rows):
        return None
    out = np.zeros(shape, dtype=np.float32)
    start = 0
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        own = np.float32(row.weight) * np.asarray(1.0 if row.weights is None else row.weights, dtype=np.float32)
        if packed:
            out[0, start : start + length] = own
            start += length
        else:
            out[i, :length] = own
    return torch.from_numpy(out)
