"""Which positions of a batch predict a token that is trained, and which token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_ft.types import IGNORE_INDEX, Batch, Supervised

SHAPES = 16
"""Different numbers of positions that a batch of one size may be computed at, where not all are read."""


def supervised(batch: Batch) -> Supervised:
    """Where the batch has targets and what they are: the only place where labels are shifted.

    Position t predicts token t + 1. The first token of a row, and of each document of a packed row, is no target. What the data
    loader found (`found_ahead`) is taken where it is of these very labels: to look on a GPU, the host has to wait for it.
    """
    known = batch.supervised
    if known is not None and known.labels is batch.labels and known.row_weights is batch.weights:
        return known
    targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    for border in batch.documents[1:-1] if batch.documents is not None else ():
        targets[:, border - 1] = IGNORE_INDEX
    flat = targets.flatten()
    index = (flat != IGNORE_INDEX).nonzero()[:, 0]
    weights = None
    if batch.weights is not None:
        weights = F.pad(batch.weights[:, 1:], (0, 1)).flatten()[index]
    rows = row_numbers(batch, index) if batch.together > 1 else None
    return Supervised(index, flat[index], weights, batch.labels, batch.weights, read_positions(index, len(flat)), rows)


def row_numbers(batch: Batch, index: Tensor) -> Tensor:
    """(N,) number of the row, or of the packed row's document, that each flat position belongs to."""
    if batch.documents is None:
        return index // batch.input_ids.shape[1]
    return torch.bucketize(index, torch.tensor(batch.documents[1:], device=index.device), right=True)


def read_positions(index: Tensor, total: int) -> Tensor | None:
    """Positions to compute where those of `index` are read, ascending: rounded up to a multiple of a 16th of all.

    Kernels are made for each shape that they meet. None where that would be more than five eighths, which gains nothing
    (`benchmarks/suites/tricks.yaml`), or nothing is read.
    """
    unit = -(-total // SHAPES)
    number = -(-len(index) // unit) * unit
    if not number or 8 * number > 5 * total:
        return None
    others = torch.ones(total, dtype=torch.bool, device=index.device)
    others[index] = False
    return torch.cat((index, others.nonzero()[: number - len(index), 0])).sort().values


def found_ahead(batch: Batch) -> Batch:
    """The batch, in which `supervised` need not look any more."""
    batch.supervised = supervised(batch)
    return batch
