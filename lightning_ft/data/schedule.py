"""Which rows are in which micro-batch of which optimiser step: a pure function of lengths, seed and sizes.

Everything exact rests on this: the rows of a step do not depend on how the step is cut into micro-batches or spread
over ranks, the step's totals are known before its first backward pass, every rank makes the same number of steps, and
a resumed run asks for step n directly. No timing and no process count changes the order of rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lightning_ft.data.mixture import Mixture

DEFAULT_ROWS = 16
"""Rows per rank and micro-batch where neither rows nor tokens are given."""


@dataclass(frozen=True)
class PlannedStep:
    """One optimiser step before any tensor exists."""

    number: int
    ranks: tuple[tuple[tuple[int, ...], ...], ...]
    """`ranks[r]` are rank r's micro-batches, each a tuple of row indices."""
    tokens: float
    """Weighted supervised tokens of all rows of the step."""
    rows: int
    fillers: frozenset[tuple[int, int]] = frozenset()
    """(rank, micro-batch) of those that only keep their rank in step with the others: their rows count nowhere."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """All steps of a run.

    Rows mode (`batch_size` given, or neither): `batch_size * accumulate * world_size` rows make a step. Token mode
    (only `batch_tokens`): rows are taken until `batch_tokens * accumulate * world_size` tokens, padding included, are
    full. In both, `batch_tokens` bounds a micro-batch; a single row may be longer.
    """

    lengths: NDArray[np.int64]
    """(N,) tokens of each row."""
    supervised: NDArray[np.float64]
    """(N,) weighted supervised tokens of each row."""
    epochs: float = 1.0
    max_steps: int | None = None
    seed: int = 0
    world_size: int = 1
    """Data-parallel ranks for which the steps are as large as they are."""
    ranks: int | None = None
    """Data-parallel ranks that a step is spread over, where a run goes on with others than it began with; None: as many."""
    batch_size: int | None = None
    batch_tokens: int | None = None
    accumulate: int = 1
    packed: bool = False
    """Whether the rows of a micro-batch are laid end to end, so that padding costs nothing."""
    mixture: Mixture | None = None
    """Which rows an epoch has; None: each row once."""
    first_epoch: int = 0
    """Number of the first epoch; another number, another order."""

    @property
    def rows_mode(self) -> bool:
        """Whether a step is a number of rows rather than of tokens."""
        return self.batch_size is not None or self.batch_tokens is None

    @property
    def rows_per_step(self) -> int:
        """Rows of a whole step in rows mode."""
        return (self.batch_size or DEFAULT_ROWS) * self.accumulate * self.world_size

    @cached_property
    def _epochs(self) -> list[tuple[NDArray[np.int64], list[int]]]:
        """For each epoch begun: the order of rows and the borders of its steps."""
        return [self._plan_epoch(epoch) for epoch in range(math.ceil(self.epochs))]

    @cached_property
    def _starts(self) -> list[int]:
        """Number of the first step of each epoch, and the number of all steps at the end."""
        starts = [0]
        for epoch, (_, borders) in enumerate(self._epochs):
            share = min(1.0, self.epochs - epoch)
            starts.append(starts[-1] + max(1, round((len(borders) - 1) * share)))
        return starts

    @cached_property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        steps = self._starts[-1]
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first whole epoch."""
        return len(self._epochs[0][1]) - 1

    def epoch_of(self, number: int) -> float:
        """How many epochs are done before step `number`."""
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        epoch = min(epoch, len(self._epochs) - 1)
        return epoch + (number - self._starts[epoch]) / (len(self._epochs[epoch][1]) - 1)

    def step(self, number: int) -> PlannedStep:
        """The plan of step `number` (0-based).

        Raises:
            IndexError: there is no such step.
        """
        if not 0 <= number < self.total_steps:
            raise IndexError(f"step {number} of {self.total_steps}")
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        order, borders = self._epochs[epoch]
        position = number - self._starts[epoch]
        rows = order[borders[position] : borders[position + 1]]
        return self._cut(number, rows)

    def __iter__(self) -> Iterator[PlannedStep]:
        return (self.step(number) for number in range(self.total_steps))

    def _plan_epoch(self, epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        """A seeded order, bucketed by length unless packed, and where steps begin in it."""
        rng = np.random.default_rng([self.seed, self.first_epoch + epoch])
        order = rng.permutation(len(self.lengths) if self.mixture is None else self.mixture.epoch(epoch))
        if self.rows_mode:
            size = self.rows_per_step
            borders = [*range(0, len(order), size), len(order)]
        else:
            borders = []
        if self.packed and borders:
            return order, borders
        window = self._window()
        blocks = [order[i : i + window] for i in range(0, len(order), window)]
        if not self.packed:
            blocks = [block[np.argsort(self.lengths[block], kind="stable")] for block in blocks]
        order = np.concatenate(blocks)
        if not borders:
            borders = self._token_borders(order)
        # Neighbouring steps of one block have like lengths; shuffling the steps takes that order away again.
        pieces = [order[a:b] for a, b in itertools.pairwise(borders)]
        last = [pieces.pop()] if self.rows_mode and len(pieces[-1]) < self.rows_per_step else []
        pieces = [pieces[i] for i in rng.permutation(len(pieces))] + last
        return np.concatenate(pieces), [0, *np.cumsum([len(piece) for piece in pieces]).tolist()]

    def _window(self) -> int:
        """Rows that are sorted together: enough for little padding, few enough that steps differ between epochs."""
        step = self.rows_per_step if self.rows_mode else max(1, int(self._step_tokens() / max(1.0, self.lengths.mean())))
        return max(1, min(32, len(self.lengths) // (8 * step))) * step

    def _step_tokens(self) -> int:
        return (self.batch_tokens or 0) * self.accumulate * self.world_size

    def _token_borders(self, order: NDArray[np.int64]) -> list[int]:
        """Fill steps greedily up to the token budget of a whole step."""
        budget, borders, used, longest, count = self._step_tokens(), [0], 0, 0, 0
        for i, length in enumerate(self.lengths[order].tolist()):
            longest = max(longest, length)
            used = used + length if self.packed else longest * (count + 1)
            count += 1
            if count > 1 and used > budget:
                borders.append(i)
                used, longest, count = length, length, 1
        return [*borders, len(order)]

    def _cut(self, number: int, rows: NDArray[np.int64]) -> PlannedStep:
        """Spread a step's rows over ranks, longest first, and cut each rank's share into micro-batches."""
        by_length = rows[np.argsort(-self.lengths[rows], kind="stable")].tolist()
        ranks = self.ranks or self.world_size
        shares: list[list[int]] = [[] for _ in range(ranks)]
        loads = [0] * ranks
        most = math.ceil(len(by_length) / ranks)
        for row in by_length:
            rank = min((r for r in range(ranks) if len(shares[r]) < most), key=lambda r: (loads[r], r))
            shares[rank].append(row)
            loads[rank] += int(self.lengths[row])
        micro = [self._micro(share) for share in shares]
        # FSDP's ranks meet in every forward pass, so that all of them need as many; a filler is the shortest row.
        number_of_passes = max(map(len, micro))
        fillers = frozenset((r, i) for r, cut in enumerate(micro) for i in range(len(cut), number_of_passes))
        filled = tuple(cut + ((by_length[-1],),) * (number_of_passes - len(cut)) for cut in micro)
        return PlannedStep(number, filled, float(self.supervised[rows].sum()), len(rows), fillers)

    def _micro(self, rows: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Micro-batches of one rank's rows (longest first): first fit, bounded in rows and in tokens."""
        most_rows = (self.batch_size or DEFAULT_ROWS) if self.rows_mode else len(rows)
        bins: list[list[int]] = []
        used: list[int] = []
        for row in rows:
            length = int(self.lengths[row])
            for i, content in enumerate(bins):
                cost = used[i] + length if self.packed else int(self.lengths[content[0]]) * (len(content) + 1)
                if len(content) < most_rows and (self.batch_tokens is None or cost <= self.batch_tokens):
                    content.append(row)
                    used[i] += length
                    break
            else:
                bins.append([row])
                used.append(length)
        return tuple(tuple(content) for content in bins)

    def padding_share(self, steps: int = 100) -> float:
        """Share of padding among the tokens of the first `steps` steps."""
        true = padded = 0
        for number in range(min(steps, self.total_steps)):
            for rank in self.step(number).ranks:
                for micro in rank:
                    lengths = self.lengths[list(micro)]
                    true += int(lengths.sum())
                    padded += int(lengths.sum() if self.packed else lengths.max() * len(lengths))
        return 1 - true / max(1, padded)
