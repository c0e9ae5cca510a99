"""The tables of a report, once for terminal, Markdown and page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_ft.bootstrap import MIN_ROWS, coverage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_ft_compare.results import Difference, Group, Judged, Model, Pair, Report


@dataclass(frozen=True)
class Table:
    """Text in rows under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int]
    """Columns of numbers."""
    caption: str = ""


def models(report: Report) -> Table:
    """Which letter is which model."""
    rows = tuple(
        (f"{model.letter}: {model.name}" + (" (baseline)" if i == 0 else ""), str(model.evaluation))
        for i, model in enumerate(report.models)
    )
    return Table(("model", "evaluation"), rows, frozenset())


def cost(report: Report) -> Table | None:
    """What the models need; None where no evaluation noted it."""
    columns: dict[str, Callable[[Model], str]] = {
        "parameters": lambda m: _of(m, "parameters", lambda v: f"{v:,.0f}"),
        "size on disk": lambda m: _of(m, "bytes", size),
        "peak memory": lambda m: _of(m, "peak_memory", size),
        "scoring": lambda m: _of(m, "likelihood_seconds", seconds),
        "scored tokens/s": lambda m: f"{m.speed['likelihood']:,.0f}" if "likelihood" in m.speed else "",
        "answering": lambda m: _of(m, "generation_seconds", seconds),
        "generated tokens/s": lambda m: f"{m.speed['generation']:,.1f}" if "generation" in m.speed else "",
    }
    filled = {name: [of(model) for model in report.models] for name, of in columns.items()}
    shown = {name: [cell or "-" for cell in cells] for name, cells in filled.items() if any(cells)}
    if not shown:
        return None
    rows = tuple((model.letter, *(cells[i] for cells in shown.values())) for i, model in enumerate(report.models))
    caption = (
        "As noted when each model was evaluated; models of one comparison run one after the other in one process, which warms "
        "up with the first."
    )
    return Table(("model", *shown), rows, frozenset(range(1, 1 + len(shown))), caption)


def _of(model: Model, key: str, show: Callable[[float], str]) -> str:
    value = model.cost.get(key)
    return "" if value is None else show(value)


def differences(report: Report, pair: Pair) -> Table:
    """Every metric of a model against the baseline."""
    a, b = report.models[0].letter, pair.letter
    head = ("metric", a, b, "difference", "improvement", f"{coverage(report.level)} interval", "p", f"{b} is")
    rows = tuple(
        (f"{c.metric} ({c.direction})", *values(d), improvement(d), c.interval, p_value(d, report.samples), c.word)
        for d in pair.differences
        for c in (d.comparison,)
    )
    caption = (
        f"{report.rows} rows, the same for all models. Intervals and p-values: paired bootstrap, {report.samples:,} draws, "
        f"{coverage(report.level)} for each metric by itself. pp: percentage points. Improvement: change towards the better as "
        f"a share of {a}'s value."
    )
    return Table(head, rows, frozenset(range(1, 7)), caption)


def wins(report: Report) -> Table:
    """Rows that each model wins, ties and loses against the baseline."""
    a = report.models[0].letter
    rows = tuple((pair.letter, w.of, *(f"{n:,}" for n in (w.win, w.tie, w.loss))) for pair in report.pairs for w in pair.wins)
    caption = f"Rows in which the model is better than, as good as and worse than {a}, by the row's own score."
    return Table(("model", "by", "wins", "ties", "losses"), rows, frozenset({2, 3, 4}), caption)


def groups(report: Report, letter: str, parts: Sequence[Group], what: str) -> Table:
    """The differences within parts of the rows, a line for each part."""
    names = tuple(d.comparison.metric for d in parts[0].differences) if parts else ()
    rows = tuple((group.name, f"{group.rows:,}", *(_mark(d) for d in group.differences)) for group in parts)
    caption = (
        f"Difference of {letter} to {report.models[0].letter}; better and worse where the {coverage(report.level)} interval "
        "leaves zero out. Values and intervals are in comparison.json."
    )
    if any(group.rows < MIN_ROWS for group in parts):
        caption += f" Parts of fewer than {MIN_ROWS} rows decide nothing."
    return Table((what, "rows", *names), rows, frozenset(range(1, 2 + len(names))), caption)


def _mark(difference: Difference) -> str:
    word = difference.comparison.word
    return f"{values(difference)[2]} {word if word in ('better', 'worse', 'changed') else ''}".rstrip()


def judged(report: Report, pair: Pair) -> Table:
    """What the judge said of a model, by criterion."""
    head = (
        "criterion", "wins", "ties", "losses", "win rate", f"{coverage(report.level)} interval", f"{pair.letter} is",
        "order changed it", "same answer", "failed",
    )  # fmt: skip
    rows = tuple(
        (
            one.criterion, f"{one.win:,}", f"{one.tie:,}", f"{one.loss:,}", share(one.rate), rate_interval(one), one.word,
            f"{one.inconsistent:,}", f"{one.same:,}", f"{one.failed:,}",
        )
        for one in pair.judged
    )  # fmt: skip
    caption = (
        f"{pair.letter} against {report.models[0].letter} as {report.judge} judges them, each row in both orders. A verdict "
        "that changes with the order is a tie, and so are answers of the same text, which are not asked about. Win rate: ties "
        f"count half; Wilson interval. Failed rows ({pair.judged_rows} were to be judged) have no verdict and count nowhere."
    )
    return Table(head, rows, frozenset({1, 2, 3, 4, 5, 7, 8, 9}), caption)


def failures(pair: Pair) -> Table | None:
    """Why rows have no verdict; None where all have one."""
    rows = tuple((one.criterion, reason, f"{count:,}") for one in pair.judged for reason, count in one.reasons.items())
    return Table(("criterion", "why there is no verdict", "rows"), rows, frozenset({2})) if rows else None


def values(difference: Difference) -> tuple[str, str, str]:
    """Baseline, model and difference."""
    c = difference.comparison
    return c.shown(c.base), c.shown(c.tuned), c.shown(c.difference, signed=True)


def improvement(difference: Difference) -> str:
    """The change towards the better in per cent."""
    value = difference.improvement
    return "-" if value is None else f"{100 * value:+.1f} %"


def p_value(difference: Difference, samples: int) -> str:
    """The p-value, which says no more than the number of draws allows."""
    p = difference.comparison.p_value
    if not math.isfinite(p):
        return "n/a"
    return f"< {2 / samples:.2g}" if p < 2 / samples else f"{p:.3f}"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "n/a"


def rate_interval(one: Judged) -> str:
    """The interval of a win rate."""
    return f"[{share(one.low)}, {share(one.high)}]" if math.isfinite(one.low) else "n/a"


def size(value: float) -> str:
    """Bytes in decimal units, three digits."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def seconds(value: float) -> str:
    """Seconds, three digits."""
    return f"{value:.3g} s" if value < 999.5 else f"{value:,.0f} s"
