"""How different the generated answers are: distinct n-grams of the whole set, and BLEU of each answer against the others.

Both depend on all rows at once, so `prepare` has to see them; `statistics` then spreads the value over the rows.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.metric import Metric
from lightning_ft_tasks.answers import answer_of
from lightning_ft_tasks.words import WORDS, ngrams, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import ScoredRow

ORDERS = 4
"""Longest n-grams of self-BLEU."""
EPSILON = 0.1
"""What stands for no n-gram in common (Chen and Cherry 2014, method 1)."""


class Distinct1(Metric):
    """Distinct words of all answers over all their words (Li et al. 2016, arXiv:1510.03055).

    A word that m answers have counts 1 / m for each of them, so that the sum over rows is the number of distinct words and
    the order of rows plays no part. Longer and more answers have a lower value by nature: compare equally many rows. In a
    bootstrap, and within groups of rows, the m stay those of the whole set.

    Neither more nor less is better by itself: it is to be like the references, of which 40 questions may share one.

    "a b a" and "b c": a counts 1 and b 1/2 for the first, b 1/2 and c 1 for the second; 3 distinct of 5.
    """

    name: ClassVar[str] = "distinct_1"
    percent: ClassVar[bool] = True
    higher_is_better = None
    order: ClassVar[int] = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.answers: Counter[tuple[str, ...]] = Counter()
        """How many answers each n-gram is in."""

    @property
    def signature(self) -> str:
        """What a word is."""
        return WORDS

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        """Count the answers that have each n-gram."""
        self.answers = Counter(gram for row in rows for gram in set(self._ngrams(row)))

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """The row's share of the distinct n-grams, and the number of its n-grams.

        Raises:
            ValueError: the row has no generated answer, or an n-gram that `prepare` did not see.
        """
        own = self._ngrams(row)
        distinct = dict.fromkeys(own)
        if any(gram not in self.answers for gram in distinct):
            raise unseen(row, self.name)
        return (math.fsum(1 / self.answers[gram] for gram in distinct), len(own))

    def _ngrams(self, row: ScoredRow) -> list[tuple[str, ...]]:
        return ngrams(words(answer_of(row, self.name)), self.order)


class Distinct2(Distinct1):
    """Distinct pairs of neighbouring words of all answers over all their pairs; otherwise as `distinct_1`.

    Li et al. divide by the words instead, of which there are as many as pairs and answers together.
    """

    name: ClassVar[str] = "distinct_2"
    order: ClassVar[int] = 2


class SelfBleu(Metric):
    """Mean over answers of the BLEU-4 that each has with all others as its references (Zhu et al. 2018, arXiv:1802.01886).

    Sentence BLEU as in `translation.Bleu`, but an order without n-gram in common has 0.1 of them (Chen and Cherry 2014,
    method 1), as the authors compute it. An answer whose words no other has gets 0; one without words gets 1, as it
    adds no variety. Lower is more diverse, which is better only where the references are, too. A single answer has
    nothing to be like, and zeros.

    Linear in the text: the most that any *other* answer has of an n-gram, clipped by the c of this one, is min(c, second
    largest count of all), whoever has the largest.
    """

    name: ClassVar[str] = "self_bleu"
    percent: ClassVar[bool] = True
    per_row: ClassVar[bool] = True
    higher_is_better = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.second: dict[tuple[str, ...], int] = {}
        """Second largest number of times that one answer has an n-gram, where two answers have it."""
        self.lengths: list[int] = []
        """Words of each answer, ascending."""

    @property
    def signature(self) -> str:
        """Orders, smoothing, and what a word is."""
        return f"n:{ORDERS}|eff:no|smooth:epsilon[{EPSILON}]|{WORDS}"

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        """Find the two largest counts of every n-gram, and all lengths."""
        largest: dict[tuple[str, ...], int] = {}
        self.second, lengths = {}, []
        for row in rows:
            said = words(answer_of(row, self.name))
            lengths.append(len(said))
            for gram, count in _counts(said).items():
                most = largest.get(gram, 0)
                largest[gram] = max(most, count)
                if most:
                    self.second[gram] = max(self.second.get(gram, 0), min(most, count))
        self.lengths = sorted(lengths)

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """The answer's BLEU and a one; zeros where it is the only answer.

        Raises:
            ValueError: the row has no generated answer, or `prepare` saw none of its length.
        """
        said = words(answer_of(row, self.name))
        place = bisect.bisect_left(self.lengths, len(said))
        if len(said) not in self.lengths[place : place + 1]:
            raise unseen(row, self.name)
        if len(self.lengths) == 1:
            return (0.0, 0.0)
        if not said:
            return (1.0, 1.0)
        every, common = [0] * ORDERS, [0] * ORDERS
        for gram, count in _counts(said).items():
            every[len(gram) - 1] += count
            common[len(gram) - 1] += min(count, self.second.get(gram, 0))
        if not common[0]:
            return (0.0, 1.0)
        mean = math.fsum(math.log((c or EPSILON) / (n or 1)) for c, n in zip(common, every, strict=True)) / ORDERS
        penalty = min(0.0, 1 - self._closest(len(said), place) / len(said))
        return (math.exp(mean + penalty), 1.0)

    def _closest(self, length: int, place: int) -> int:
        """The length nearest to that at a place among the others, of two the shorter."""
        others = self.lengths[max(place - 1, 0) : place] + self.lengths[place + 1 : place + 2]
        return min(others, key=lambda other: (abs(other - length), other))


def _counts(said: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each n-gram of 1 to 4 words is there."""
    return Counter(gram for order in range(1, ORDERS + 1) for gram in ngrams(said, order))


def unseen(row: ScoredRow, metric: str) -> ValueError:
    """The error of a row that came without having been looked at with all others."""
    return ValueError(f"{row.row}: metric {metric} expected `prepare` to have seen this answer, got one that it had not")
