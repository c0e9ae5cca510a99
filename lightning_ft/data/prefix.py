"""What all rows begin with (a system prompt, the first words of a template), and packed rows in which it is computed once.

A causal model makes the same of it in every document. So the model gets the tokens of the first document, and of the others
those behind what they have in common; attention puts the rows together again (`engine.attention`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lightning_ft.data.targets import read_positions, supervised
from lightning_ft.types import Batch, Shared

if TYPE_CHECKING:
    from lightning_ft.data.table import EncodedTable

LEAST = 8
"""Tokens from which on a common beginning is worth it."""
MOST = 4096
"""Tokens of it that are looked at."""
SHARE = 0.12
"""Part of the rows' tokens that it has to be: attention copies queries, keys and values for it, which eats up what less than
a tenth saves (`benchmarks/suites/tricks.yaml`)."""


def common_prefix(table: EncodedTable) -> int:
    """Tokens that all rows of a table begin with, at most all but one of the shortest; 0 where they are too few to matter."""
    if len(table) < 2:
        return 0
    first = np.asarray(table[0].input_ids)
    common = int(min(MOST, table.lengths.min() - 1))
    for ids, offsets in table.tokens():
        if common < LEAST:
            return 0
        rows = ids[offsets[:-1, None] + np.arange(common)]
        differs = (rows != first[:common]).any(0)
        common = int(differs.argmax()) if differs.any() else common
    return common if common >= max(LEAST, SHARE * float(table.lengths.mean())) else 0


def share(batch: Batch, prefix: int) -> Batch:
    """The batch, which knows how to be computed with what its documents begin with only once.

    Args:
        batch: Packed, or left alone.
        prefix: Tokens that every document begins with, but for one that only fills the row up.
    """
    batch.shared = None
    if not prefix or batch.documents is None or len(batch.rows) < 2:
        return batch
    starts, total = batch.documents[1 : len(batch.rows)], batch.documents[-1]
    kept = np.ones(total, dtype=bool)
    for start in starts:
        kept[start : start + prefix] = False
    place = np.cumsum(kept) - 1
    for start in starts:
        place[start : start + prefix] = np.arange(prefix)
    keep, where = torch.from_numpy(np.flatnonzero(kept)), torch.from_numpy(place)
    index = torch.unique(where[supervised(batch).index])
    batch.shared = Shared(prefix, keep, where, read_positions(index, len(keep)), batch.input_ids, batch.labels)
    return batch
