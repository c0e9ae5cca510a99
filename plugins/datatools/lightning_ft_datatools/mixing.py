"""Several sources in given shares, every repetition counted."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft.data.mixture import apportioned, by_size
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Mixed:
    """The rows of a mixture."""

    rows: Sequence[dict[str, Any]]
    """With the column `source`."""
    counts: Mapping[str, tuple[int, int, int]]
    """Of each source: its rows, those taken, and how many of these are repetitions."""


def mix(
    names: Sequence[str], *, weights: Sequence[float] | None = None, temperature: float | None = None, count: int | None = None,
    to: str = "messages", seed: int = 0, task: str | None = None, columns: Mapping[str, str] | None = None,
) -> Mixed:  # fmt: skip
    """Rows of several sources, shuffled, as rows of one format.

    A source that has fewer rows than its share is taken whole as often as it fits, then in part: no row twice more often
    than another.

    Args:
        names: one file, glob or folder per source.
        weights: share of each source, up to a factor; None: by size.
        temperature: without weights, shares are sizes to the power of 1 / T (Conneau and Lample 2019, arXiv:1901.07291,
            section 3.1): 1 keeps the sizes, more evens them out.
        count: rows of the mixture; None: as many as the sources have.
        to: a format of `convert`.
        seed: of the choice and the order.
        task: of all sources, by name, or None to let the columns of each decide.
        columns: as for `fit`.

    Raises:
        DataError: rows cannot be read or held by the format.
        UsageError: weights that do not fit.
    """
    from lightning_ft_datatools.converting import convert

    good = weights is None or (len(weights) == len(names) and min(weights) >= 0 and 0 < sum(weights) < math.inf)
    if weights is not None and not good:
        raise UsageError(f"Expected --weights to be {len(names)} shares of at least 0, one per source; got {list(weights)}.")
    if temperature is not None and (weights is not None or not 0 < temperature < math.inf):
        raise UsageError("Expected --temperature to be above 0 and without --weights; type one of the two.")
    sources = [convert([name], to, task=task, columns=columns) for name in names]
    if any(row.get("split") not in (None, "") for rows in sources for row in rows):
        # In one file all rows have to say where they belong; those of a source that does not say are for training.
        sources = [
            [row if row.get("split") not in (None, "") else {**row, "split": "train"} for row in rows] for rows in sources
        ]
    sizes = [len(rows) for rows in sources]
    total = sum(sizes) if count is None else count
    if total < 1:
        raise UsageError(f"Expected --count to be at least 1; got {total}.")
    wanted = apportioned(by_size(sizes, temperature or 1.0) if weights is None else weights, total)
    draw = np.random.default_rng(seed)
    mixed: list[dict[str, Any]] = []
    counts = {}
    for name, rows, number in zip(names, sources, wanted, strict=True):
        times, rest = divmod(number, len(rows))
        order = [i for _ in range(times) for i in draw.permutation(len(rows)).tolist()]
        order += draw.permutation(len(rows))[:rest].tolist()
        mixed += [{**rows[i], "source": rows[i].get("source", name)} for i in order]
        counts[name] = (len(rows), number, number - len(Counter(order)))
    return Mixed([mixed[i] for i in draw.permutation(len(mixed)).tolist()], counts)
