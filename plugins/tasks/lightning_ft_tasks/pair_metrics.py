"""Whether a model holds the better answer of a preference pair to be the likelier one, with no reference model.

Of a pair with the prompt x, y_w is the better and y_l the worse answer; log p(y | x) is the sum over the tokens of an answer
and of its end of turn, |y| their number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.metric import Metric, RowMetric
from lightning_ft.types import Preference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import ScoredRow

SAME = 1e-6
"""Relative difference of log-probabilities up to which they are equal: they differ by so much with the batch."""


def log_probabilities(row: ScoredRow, *, mean: bool) -> tuple[float, float] | None:
    """Log-probabilities (nats) of the better and the worse answer; None where no token is left of one of them.

    Args:
        row: A pair.
        mean: Per token; else summed.
    """
    assert row.worse is not None, "an evaluation hands out rows that have what the metric reads"
    answers = ((row.nll, row.tokens), row.worse)
    if not all(tokens for _, tokens in answers):
        return None
    better, worse = (-nll / tokens if mean else -nll for nll, tokens in answers)
    return better, worse


def check_pair(row: ScoredRow) -> None:
    """Refuse a row that is no pair.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(row.example, Preference):
        raise ValueError(
            f"{row.row}: expected a pair of a better and a worse answer, as --task preference makes them, got "
            f"{type(row.example).__name__}"
        )


class PreferenceAccuracy(Metric):
    """Share of pairs with log p(y_w | x) > log p(y_l | x); equal ones are half right (`SAME`).

    This is the ranking accuracy of Chen et al. 2024, "Preference Learning Algorithms Do Not Learn Preference Rankings"
    (arXiv:2405.19534), and RewardBench's with `ref_free_norm` "sum". A pair of which `max_length` left one answer no token is
    wrong.

    By hand: sums of -4 and -6, -5 and -3, -2 and -2 (nats) are (1 + 0 + 1/2) / 3 = 0.5.
    """

    name: ClassVar[str] = "preference_accuracy"
    reads = "pair"
    percent: ClassVar[bool] = True
    mean: ClassVar[bool] = False
    """Whether log-probabilities are per token."""

    @property
    def signature(self) -> str:
        """Which log-probabilities are compared."""
        return f"logp:{'mean' if self.mean else 'sum'}|ref:none|ties:half"

    def check(self, row: ScoredRow) -> None:
        """Refuse a row that is no pair."""
        check_pair(row)

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """1, 1/2 or 0, and a one."""
        found = log_probabilities(row, mean=self.mean)
        if found is None:
            return (0.0, 1.0)
        return (0.5 if math.isclose(*found, rel_tol=SAME) else float(found[0] > found[1]), 1.0)


class PreferenceAccuracyAvg(PreferenceAccuracy):
    """Share of pairs with log p(y_w | x) / |y_w| > log p(y_l | x) / |y_l|: long answers are not at a disadvantage.

    The reward of SimPO (Meng et al. 2024, arXiv:2405.14734, equation 4) without its factor, and RewardBench's accuracy (Lambert
    et al. 2024, arXiv:2403.13787) with `ref_free_norm` "avg".

    By hand: -4 over 4 tokens and -3 over 2 are -1 and -1.5, right, though the sums say wrong.
    """

    name: ClassVar[str] = "preference_accuracy_avg"
    mean: ClassVar[bool] = True


class PreferenceMargin(RowMetric):
    """Mean over pairs of log p(y_w | x) / |y_w| - log p(y_l | x) / |y_l|, in nats per token.

    The difference of SimPO's rewards (Meng et al. 2024, arXiv:2405.14734, equation 4) without their factor. A pair of which
    `max_length` left one answer no token has 0: nothing told its answers apart.

    By hand: -4 over 4 tokens and -3 over 2 are -1 + 1.5 = 0.5; -6 over 3 and -1 over 1 are -2 + 1 = -1; the mean is -0.25.
    """

    name: ClassVar[str] = "preference_margin"
    reads = "pair"

    @property
    def signature(self) -> str:
        """Which log-probabilities are compared."""
        return "logp:mean|ref:none"

    def check(self, row: ScoredRow) -> None:
        """Refuse a row that is no pair."""
        check_pair(row)

    def score(self, row: ScoredRow) -> float:
        """The pair's difference."""
        found = log_probabilities(row, mean=True)
        return 0.0 if found is None else found[0] - found[1]
