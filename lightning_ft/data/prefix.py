"""What documents begin with alike (all rows a system prompt, a pair its prompt), and packed rows in which it is computed once.

A causal model makes the same of it in every document. So the model gets all tokens of the first document, and of the others
those behind what they have in common with it; attention puts the rows together again (`engine.attention`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lightning_ft.data.targets import read_positions, supervised
from lightning_ft.types import Batch, Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.data.table import EncodedTable
    from lightning_ft.types import Encoded

LEAST = 8
"""Tokens from which on a common beginning is worth it."""
MOST = 4096
"""Tokens of it that are looked at."""
LOOKED_AT = 1000
"""Rows of several texts that decide whether what each begins with is worth it."""
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


def common_prompt(table: EncodedTable) -> tuple[int, float]:
    """Tokens that the texts of a row begin with alike, in the mean over rows all over a table, and their share of all tokens.

    Zeros where a row is one text, or they are too few to matter.
    """
    if table.texts == 1:
        return 0, 0.0
    looked = range(0, len(table), -(-len(table) // LOOKED_AT))
    mean = sum(prompt_tokens(table[i]) for i in looked) / len(looked)
    share = (table.texts - 1) * mean / float(table.lengths[list(looked)].mean())
    return (round(mean), share) if mean >= LEAST and share >= SHARE else (0, 0.0)


def prompt_tokens(row: Encoded) -> int:
    """Tokens that all texts of a row begin with, at most all but one of the shortest."""
    first, *others = (np.asarray(text.input_ids) for text in row.texts())
    common = min(len(first), *map(len, others)) - 1
    for other in others:
        differs = first[:common] != other[:common]
        common = int(differs.argmax()) if differs.any() else common
    return common


def share(batch: Batch, prefix: int) -> Batch:
    """The batch, which knows how to be computed with what its documents begin with only once.

    Args:
        batch: Packed, or left alone.
        prefix: Tokens that every document begins with, but for one that only fills the row up.
    """
    return share_each(batch, [0] + [prefix] * (len(batch.rows) - 1))


def share_each(batch: Batch, alike: Sequence[int]) -> Batch:
    """The batch, which knows how to be computed with what is alike only once.

    Args:
        batch: Packed, or left alone.
        alike: Of each document but one that only fills the row up, how many tokens it begins with as its lead does: the first
            of those that belong together, or where none do, the first of all. 0 for a lead itself.
    """
    batch.shared = None
    if batch.documents is None or not any(alike):
        return batch
    starts, total = batch.documents[: len(batch.rows)], batch.documents[-1]
    kept = np.ones(total, dtype=bool)
    for start, length in zip(starts, alike, strict=True):
        kept[start : start + length] = False
    place = np.cumsum(kept) - 1
    for number, (start, length) in enumerate(zip(starts, alike, strict=True)):
        lead = starts[number - number % batch.together] if batch.together > 1 else 0
        place[start : start + length] = place[lead : lead + length]
    device = batch.input_ids.device  # of a step that is cut where the memory has not sufficed, a GPU
    keep, where = (torch.from_numpy(numbers).to(device) for numbers in (np.flatnonzero(kept), place))
    index = torch.unique(where[supervised(batch).index])
    batch.shared = Shared(tuple(alike), keep, where, read_positions(index, len(keep)), batch.input_ids, batch.labels)
    return batch
