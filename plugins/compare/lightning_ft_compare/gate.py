"""A gate for releases: which models are worse than the baseline by more than a margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft_compare.results import Difference, Pair

RULE = (
    "METRIC[:MARGIN]: exit 3 where a model is worse than the baseline by more than MARGIN (default 0), that is where the whole "
    "interval of the difference lies beyond it. In the unit of the table: 2 are two percentage points for a metric in per cent."
)
"""What the gate says no to."""


@dataclass(frozen=True)
class Limit:
    """How much worse a metric may become."""

    metric: str
    margin: float
    """In the metric's unit; 0.02 for two percentage points."""
    shown: str
    """As the user typed it."""


def limits_of(texts: Sequence[str]) -> tuple[Limit, ...]:
    """Limits as users type them, `METRIC[:MARGIN]`.

    Raises:
        UsageError: an unknown metric, one without a better side, or a margin that is no number of at least 0.
    """
    from lightning_ft.registry import registry

    out = []
    for text in texts:
        name, colon, number = text.partition(":")
        try:
            cls = registry().metrics[name].cls
        except UsageError as error:
            raise UsageError(str(error).replace("--metrics", "--fail_if_worse", 1)) from error
        if cls.higher_is_better is None:
            raise UsageError(f"Expected --fail_if_worse to name a metric with a better side; got '{cls.name}', which has none.")
        try:
            margin = float(number) if colon else 0.0
        except ValueError:
            margin = math.nan
        if not 0 <= margin < math.inf:
            raise UsageError(
                f"Expected --fail_if_worse {name}:MARGIN with a number of at least 0; got '{number}', as in {name}:0.05."
            )
        out.append(Limit(cls.name, margin / 100 if cls.percent else margin, text))
    return tuple(out)


def refusals(limits: Sequence[Limit], pairs: Sequence[Pair]) -> tuple[str, ...]:
    """A sentence for each limit that a model exceeds, or of which nothing can be said.

    A gate that cannot decide does not let pass: fewer than `MIN_ROWS` rows that count, or values that are no numbers.
    """
    return tuple(
        said
        for limit in limits
        for pair in pairs
        for difference in pair.differences
        if difference.comparison.metric == limit.metric and (said := _refusal(limit, pair.letter, difference))
    )


def _refusal(limit: Limit, letter: str, difference: Difference) -> str | None:
    from lightning_ft.bootstrap import MIN_ROWS

    c = difference.comparison
    low, _ = difference.worsening
    flag = f"--fail_if_worse {limit.shown}"
    if not math.isfinite(low):
        return f"{flag}: {letter} cannot be compared in {c.metric} ({c.shown(c.base)} -> {c.shown(c.tuned)})."
    if c.rows < MIN_ROWS:
        return f"{flag}: {c.rows} rows decide nothing; compare on at least {MIN_ROWS}."
    if low <= limit.margin:
        return None
    by = f" by more than {c.shown(limit.margin, signed=True).lstrip('+')}" if limit.margin else ""
    return (
        f"{flag}: {letter} is worse than A in {c.metric}{by}: {c.shown(c.base)} -> {c.shown(c.tuned)}, difference "
        f"{c.shown(c.difference, signed=True)} {c.interval}."
    )
