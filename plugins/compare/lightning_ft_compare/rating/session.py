"""One rater's way through the pairs: what is shown next, and what comes of each answer; the same for terminal and page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_ft_compare.rating.pairs import left_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft_compare.rating.folder import Choice, Ratings
    from lightning_ft_compare.rating.pairs import Answers


@dataclass(frozen=True)
class View:
    """What a rater sees: nothing of it says which model is which."""

    step: str
    """Changes with every question, so that an answer can name the one that it is meant for."""
    number: int
    """1-based, of the pair."""
    total: int
    prompt: str
    left: str
    right: str
    criterion: str
    question: str
    part: int
    """1-based, of the criterion."""
    parts: int
    chosen: str | None
    """What the rater said before, where they went back."""


class Session:
    """Asks one question after the other; pairs of the same text are ties that nobody is asked about.

    Args:
        pairs: In the order in which they are rated.
        criteria: Questions by name.
        ratings: Take the answers, and know those from before.
        rater: Who rates.
        seed: Decides which answer is on the left.
    """

    def __init__(self, pairs: Sequence[Answers], criteria: Mapping[str, str], ratings: Ratings, rater: str, seed: int) -> None:
        self.criteria, self.rater = dict(criteria), rater
        self._pairs, self._ratings, self._seed = list(pairs), ratings, seed
        self._names = list(criteria)
        asked = [pair for pair in pairs if not pair.same]
        done = [pair for pair in asked if not self._missing(pair)]
        left = [pair for pair in asked if self._missing(pair)]
        # Behind those that are answered, so that these can be gone back to; what was skipped comes last.
        self._queue = done + sorted(left, key=self._was_skipped)
        self._skipped: set[int] = set()
        self._moves = self._at = self._part = 0
        self._go(len(done))

    @property
    def total(self) -> int:
        """Pairs that are asked about."""
        return len(self._queue)

    @property
    def answered(self) -> int:
        """Pairs that have all their answers."""
        return sum(not self._missing(pair) for pair in self._queue)

    @property
    def complete(self) -> bool:
        """Whether every pair has all its answers."""
        return self.answered == self.total

    @property
    def view(self) -> View | None:
        """The question; None behind the last one."""
        if self._at == self.total:
            return None
        pair, name = self._queue[self._at], self._names[self._part]
        left = left_of(pair, self.rater, self._seed)
        a, b = pair.of
        shown = (a, b) if left == "A" else (b, a)
        said = self._ratings.of(self.rater, pair.key, name)
        return View(
            f"{self._moves}-{pair.key}", self._at + 1, self.total, pair.prompt, *shown, name, self.criteria[name],
            self._part + 1, len(self._names), said,
        )  # fmt: skip

    def answer(self, choice: Choice) -> None:
        """Note an answer and go on to the next question that has none."""
        pair = self._queue[self._at]
        self._note(pair, self._names[self._part], choice)
        self._note_same(before=self._pairs.index(pair))
        self._go(self._at)

    def skip(self) -> None:
        """Leave the rest of a pair open; it comes again when the rating is gone on with, after all others."""
        pair = self._queue[self._at]
        for name in self._names[self._part :]:
            self._note(pair, name, "skip")
        self._skipped.add(self._at)
        self._go(self._at + 1)

    def back(self) -> bool:
        """Go to the question before; whether there is one."""
        if self._at < self.total and self._part:
            self._part -= 1
        elif self._at:
            self._at -= 1
            self._skipped.discard(self._at)
            missing = self._missing(self._queue[self._at])
            self._part = missing[0] if missing else len(self._names) - 1
        else:
            return False
        self._moves += 1
        return True

    def finish(self) -> None:
        """Note the ties that nobody was asked about, behind the last answer."""
        self._note_same(before=len(self._pairs))

    def _go(self, position: int) -> None:
        """To the first question without an answer from a pair on."""
        self._moves += 1
        for at in range(position, self.total):
            missing = self._missing(self._queue[at])
            if missing and at not in self._skipped:
                self._at, self._part = at, missing[0]
                return
        self._at, self._part = self.total, 0

    def _missing(self, pair: Answers) -> list[int]:
        said = (self._ratings.of(self.rater, pair.key, name) for name in self._names)
        return [i for i, choice in enumerate(said) if choice in (None, "skip")]

    def _was_skipped(self, pair: Answers) -> bool:
        return any(self._ratings.of(self.rater, pair.key, name) == "skip" for name in self._names)

    def _note(self, pair: Answers, name: str, choice: Choice) -> None:
        self._ratings.add(self.rater, pair.row, pair.key, name, choice, left_of(pair, self.rater, self._seed))

    def _note_same(self, before: int) -> None:
        for pair in self._pairs[:before]:
            for name in self._names if pair.same else ():
                if self._ratings.of(self.rater, pair.key, name) is None:
                    self._note(pair, name, "same")
