"""Which rows are in which micro-batch of which optimiser step: a pure function of lengths, seed and sizes.

Everything exact rests on this: the rows of a step do not depend on how the step is cut into micro-batches or spread
over ranks, the step's totals are known before its first backward pass, every rank makes the same number of steps, and
a resumed run asks for step n directly. No timing and no process count changes the order of rows.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lightning_ft.data.bins import best_fit

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


@dataclass(frozen=True)
class Epoch:
    """The order of an epoch's rows, and where it is cut."""

    order: NDArray[np.int64]
    steps: list[int]
    """Borders of the steps in it, from 0 to its length."""
    boxes: list[int] | None = None
    """Borders of the micro-batches, where those were made before the steps; None: a step is cut when it is asked for."""

    def boxes_of(self, number: int) -> list[list[int]]:
        """The rows of each micro-batch of a step."""
        assert self.boxes is not None
        first, last = (bisect_left(self.boxes, border) for border in self.steps[number : number + 2])
        return [self.order[a:b].tolist() for a, b in itertools.pairwise(self.boxes[first : last + 1])]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """All steps of a run.

    Rows mode (`batch_size` given, or neither): `batch_size * accumulate * world_size` rows make a step. Token mode
    (only `batch_tokens`): rows are taken until `batch_tokens * accumulate * world_size` tokens, padding included, are
    full; packed, `accumulate * world_size` micro-batches are, each of the rows that fit together best among some hundred. In
    both, `batch_tokens` bounds a micro-batch; a single row may be longer.
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
    def _epochs(self) -> list[Epoch]:
        """Each epoch begun."""
        return [self._plan_epoch(epoch) for epoch in range(math.ceil(self.epochs))]

    @cached_property
    def _starts(self) -> list[int]:
        """Number of the first step of each epoch, and the number of all steps at the end."""
        starts = [0]
        for number, epoch in enumerate(self._epochs):
            share = min(1.0, self.epochs - number)
            starts.append(starts[-1] + max(1, round((len(epoch.steps) - 1) * share)))
        return starts

    @cached_property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        steps = self._starts[-1]
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first whole epoch."""
        return len(self._epochs[0].steps) - 1

    def epoch_of(self, number: int) -> float:
        """How many epochs are done before step `number`."""
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        epoch = min(epoch, len(self._epochs) - 1)
        return epoch + (number - self._starts[epoch]) / (len(self._epochs[epoch].steps) - 1)

    def step(self, number: int) -> PlannedStep:
        """The plan of step `number` (0-based).

        Raises:
            IndexError: there is no such step.
        """
        if not 0 <= number < self.total_steps:
            raise IndexError(f"step {number} of {self.total_steps}")
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        epoch, position = self._epochs[which], number - self._starts[which]
        rows = epoch.order[epoch.steps[position] : epoch.steps[position + 1]]
        ranks = self._cut(rows) if epoch.boxes is None else self._dealt(epoch.boxes_of(position))
        # FSDP's ranks meet in every forward pass, so that all of them need as many; a filler is the shortest row.
        shortest, passes = int(rows[self.lengths[rows].argmin()]), max(map(len, ranks))
        fillers = frozenset((r, i) for r, cut in enumerate(ranks) for i in range(len(cut), passes))
        filled = tuple(cut + ((shortest,),) * (passes - len(cut)) for cut in ranks)
        return PlannedStep(number, filled, float(self.supervised[rows].sum()), len(rows), fillers)

    def __iter__(self) -> Iterator[PlannedStep]:
        return (self.step(number) for number in range(self.total_steps))

    def _plan_epoch(self, epoch: int) -> Epoch:
        """A seeded order, bucketed by length unless packed, and where steps begin in it."""
        rng = np.random.default_rng([self.seed, self.first_epoch + epoch])
        order = rng.permutation(len(self.lengths) if self.mixture is None else self.mixture.epoch(epoch))
        if self.packed and not self.rows_mode:
            return self._boxed(order)
        if self.rows_mode:
            size = self.rows_per_step
            borders = [*range(0, len(order), size), len(order)]
        else:
            borders = []
        if self.packed:
            return Epoch(order, borders)
        window = self._window()
        blocks = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([block[np.argsort(self.lengths[block], kind="stable")] for block in blocks])
        if not borders:
            borders = self._token_borders(order)
        # Neighbouring steps of one block have like lengths; shuffling the steps takes that order away again.
        pieces = [order[a:b] for a, b in itertools.pairwise(borders)]
        last = [pieces.pop()] if self.rows_mode and len(pieces[-1]) < self.rows_per_step else []
        pieces = [pieces[i] for i in rng.permutation(len(pieces))] + last
        return Epoch(np.concatenate(pieces), _borders(pieces))

    def _boxed(self, order: NDArray[np.int64]) -> Epoch:
        """Micro-batches by best fit, window by window, and as many of them for each step as all ranks have together.

        The one that was begun last in a window waits for the rows of the next.
        """
        assert self.batch_tokens is not None
        window, room = self._window(), self.batch_tokens
        boxes: list[NDArray[np.int64]] = []
        waiting = order[:0]
        for start in range(0, len(order), window):
            rows = np.concatenate((waiting, order[start : start + window]))
            found = [rows[box] for box in best_fit(self.lengths[rows].tolist(), room)]
            waiting = found.pop()
            boxes += found
        boxes.append(waiting)
        borders = _borders(boxes)
        return Epoch(np.concatenate(boxes), [*borders[: -1 : self.accumulate * self.world_size], len(order)], borders)

    def _window(self) -> int:
        """Rows that are sorted together: enough for little padding, few enough that steps differ between epochs."""
        step = self.rows_per_step if self.rows_mode else max(1, int(self._step_tokens() / max(1.0, self.lengths.mean())))
        return max(1, min(32, len(self.lengths) // (8 * step))) * step

    def _step_tokens(self) -> int:
        return (self.batch_tokens or 0) * self.accumulate * self.world_size

    def _token_borders(self, order: NDArray[np.int64]) -> list[int]:
        """Fill steps greedily up to the token budget of a whole step, padding included."""
        budget, borders, longest, count = self._step_tokens(), [0], 0, 0
        for i, length in enumerate(self.lengths[order].tolist()):
            longest = max(longest, length)
            count += 1
            if count > 1 and longest * count > budget:
                borders.append(i)
                longest, count = length, 1
        return [*borders, len(order)]

    def _dealt(self, boxes: list[list[int]]) -> list[tuple[tuple[int, ...], ...]]:
        """Micro-batches by rank, fullest first, so that each rank has about as many tokens."""
        boxes = sorted(boxes, key=lambda box: -int(self.lengths[box].sum()))
        ranks = self.ranks or self.world_size
        return [tuple(map(tuple, boxes[rank::ranks])) for rank in range(ranks)]

    def _cut(self, rows: NDArray[np.int64]) -> list[tuple[tuple[int, ...], ...]]:
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
        return [self._micro(share) for share in shares]

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


def _borders(pieces: Sequence[NDArray[np.int64]]) -> list[int]:
    """Where each piece begins when they are laid end to end, and the end."""
    return [0, *np.cumsum([len(piece) for piece in pieces]).tolist()]
