"""What the ratings say: win rates with intervals, and whether raters favour a side."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.bootstrap import MIN_ROWS, coverage
from lightning_ft_compare.judge import wilson
from lightning_ft_compare.results import plain
from lightning_ft_compare.tables import Table, share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft_compare.rating.folder import Rating
    from lightning_ft_compare.rating.pairs import Answers

DOUBT = 0.05
"""p-value below which a side seems to be favoured."""
_WIDEST = 24


@dataclass(frozen=True)
class Rated:
    """What was said by one criterion."""

    criterion: str
    question: str
    rows: int
    """Pairs with at least one rating."""
    ratings: int
    """One for each pair and rater."""
    a: int
    """Ratings that prefer A."""
    b: int
    tie: int
    both_bad: int
    same: int
    """Pairs of the same text, which count as ties and are not asked about."""
    skipped: int
    """Pairs that a rater skipped; they count nowhere."""
    rate: float
    """A's win rate: mean over the pairs of the raters' mean, in which ties, both bad and same count half; B's is 1 - rate."""
    low: float
    """Interval of A's win rate: Wilson's over the pairs (Wilson 1927). A pair's score lies between 0 and 1, so its variance
    is at most that of a coin with the same mean, and the interval no narrower than it has to be."""
    high: float
    left: int
    """Ratings that prefer the left answer, whichever that is."""
    right: int
    side_p: float
    """Two-sided exact binomial test of `left` against one half; sides are drawn by a coin, so that a difference between the
    models favours none. NaN without a preference."""
    agreement: float | None
    """Share of the pairs of raters of one pair of answers who said the same; None: nothing was rated twice."""

    @property
    def both_bad_share(self) -> float:
        """Share of `both bad` in what raters were asked about; NaN where they were asked about nothing."""
        asked = self.ratings - self.same
        return self.both_bad / asked if asked else math.nan

    @property
    def better(self) -> str | None:
        """The letter of the model that is better; None: no difference shown, as one half is inside or pairs are too few."""
        if self.rows < MIN_ROWS or self.low <= 0.5 <= self.high:
            return None
        return "A" if self.low > 0.5 else "B"

    def of(self, letter: str) -> tuple[float, float, float]:
        """Win rate and interval of a model."""
        return (self.rate, self.low, self.high) if letter == "A" else (1 - self.rate, 1 - self.high, 1 - self.low)


def rated(found: Sequence[Rating], pairs: Sequence[Answers], criteria: Mapping[str, str], level: float) -> tuple[Rated, ...]:
    """A summary per criterion.

    Args:
        found: Ratings that count.
        pairs: What was rated; ratings of other pairs are left out.
        criteria: Questions by name.
        level: Coverage of the intervals.
    """
    known = {pair.key for pair in pairs}
    out = []
    for name, question in criteria.items():
        own = [rating for rating in found if rating.criterion == name and rating.key in known]
        said = [rating for rating in own if rating.choice != "skip"]
        choices = Counter(rating.choice for rating in said)
        winners = Counter(rating.winner for rating in said)
        by_pair: dict[str, list[Rating]] = defaultdict(list)
        for rating in said:
            by_pair[rating.key].append(rating)
        scores = [sum(map(_score, group)) / len(group) for group in by_pair.values()]
        low, high = wilson(sum(scores), len(scores), level)
        left, right = choices["left"], choices["right"]
        out.append(Rated(
            name, question, len(scores), len(said), winners["A"], winners["B"], choices["tie"], choices["both_bad"],
            choices["same"], len(own) - len(said), sum(scores) / len(scores) if scores else math.nan, low, high, left, right,
            coin_p(left, right), _agreement(list(by_pair.values())),
        ))  # fmt: skip
    return tuple(out)


def _score(rating: Rating) -> float:
    return {"A": 1.0, "B": 0.0}.get(rating.winner or "", 0.5)


def coin_p(one: int, other: int) -> float:
    """Two-sided exact test of a fair coin: `min(1, 2 P(X <= min(one, other)))`, X binomial of `one + other` and 1/2.

    8 to 2: 2 (1 + 10 + 45) / 1024 = 0.109375.
    """
    rows = one + other
    if not rows:
        return math.nan
    tail = sum(math.comb(rows, k) for k in range(min(one, other) + 1))
    return min(1.0, float(2 * tail / 2**rows))


def _agreement(groups: Sequence[Sequence[Rating]]) -> float | None:
    pairs = [
        (one, other)
        for group in groups
        for one, other in itertools.combinations(group, 2)
        if "same" not in (one.choice, other.choice)
    ]
    said = [{r.winner or r.choice for r in pair} for pair in pairs]
    return sum(len(words) == 1 for words in said) / len(said) if said else None


def as_dict(
    rates: Sequence[Rated], models: Sequence[str], raters: Sequence[str], level: float, left_out: Mapping[str, int]
) -> dict[str, Any]:
    """Plain values for rating.json; NaN becomes null."""
    lines = []
    for one in rates:
        rates_of = {
            letter: {"win_rate": plain(rate), "low": plain(low), "high": plain(high)}
            for letter in "AB"
            for rate, low, high in (one.of(letter),)
        }
        lines.append(plain(one) | {"models": rates_of, "better": one.better, "both_bad_share": plain(one.both_bad_share)})
    return {
        "version": 1, "models": dict(zip("AB", models, strict=True)), "raters": list(raters), "level": level,
        "interval": "Wilson's over pairs, ties, both bad and same answers counting half", "criteria": lines,
        "preferences": dict(left_out),
    }  # fmt: skip


def counts(rates: Sequence[Rated]) -> Table:
    """How often what was said."""
    head = ("criterion", "pairs", "A", "B", "ties", "both bad", "same", "skipped")
    rows = tuple(
        (short(one.criterion), *(f"{n:,}" for n in (one.rows, one.a, one.b, one.tie, one.both_bad, one.same, one.skipped)))
        for one in rates
    )
    return Table(head, rows, frozenset(range(1, 8)))


def win_rates(rates: Sequence[Rated], level: float) -> Table:
    """Win rates of both models."""
    head = ("criterion", "model", "win rate", f"{coverage(level)} interval", "")
    rows = []
    for one in rates:
        for letter in "AB":
            rate, low, high = one.of(letter)
            word = "no difference shown" if one.better is None else "better" if one.better == letter else "worse"
            interval = f"[{share(low)}, {share(high)}]" if one.rows else "n/a"
            rows.append((short(one.criterion), letter, share(rate), interval, word))
    return Table(head, tuple(rows), frozenset({2, 3}))


def notes(rates: Sequence[Rated]) -> list[str]:
    """Sentences on sides, bad answers and agreement."""
    out = []
    for one in rates:
        parts = [f"both bad in {share(one.both_bad_share)}", f"left preferred {one.left:,} and right {one.right:,} times"]
        if math.isfinite(one.side_p):
            parts[-1] += f" (p = {one.side_p:.3f})" if one.side_p >= 0.001 else " (p < 0.001)"
        if one.agreement is not None:
            parts.append(f"two raters agree in {share(one.agreement)}")
        doubt = ": a side seems to be favoured, so that the rates are drawn towards one half" if one.side_p < DOUBT else ""
        out.append(f"{one.criterion}: {', '.join(parts)}{doubt}.")
        if one.rows < MIN_ROWS:
            out.append(f"{one.criterion}: fewer than {MIN_ROWS} pairs never decide.")
    return out


def short(text: str) -> str:
    """A name that fits into a table of 80 columns."""
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3].rstrip() + "..."
