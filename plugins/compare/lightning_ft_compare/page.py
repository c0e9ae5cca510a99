"""A comparison as a page: tables and charts, without scripts and without anything from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.bootstrap import coverage
from lightning_ft.charts import LINES, Bar, Series, histogram, interval_chart, line_chart
from lightning_ft.curves import CURVES, points, read_log
from lightning_ft.page import figure, heat_table, missing, quote, safe, section, table
from lightning_ft.page import page as frame
from lightning_ft_compare import tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft_compare.results import Change, Difference, Pair, Report
    from lightning_ft_compare.tables import Table

LONGEST_NAME = 44
"""Letters of a name in a chart."""
KINDS = ("better", "worse")
"""Words that have a colour of their own."""


def page(report: Report) -> str:
    """The page's text."""
    first = report.models[0].letter
    sections = [section("Models", _models(report))]
    sections += [section(f"{pair.letter} against {first}", _differences(report, pair)) for pair in report.pairs]
    sections.append(section("Wins and losses", shown(tables.wins(report))))
    sections += [
        section(f"Judged: {pair.letter} against {first}", _judged(report, pair)) for pair in report.pairs if pair.judged
    ]
    sections += [
        section(
            f"By {report.by}: {pair.letter} against {first}",
            shown(tables.groups(report, pair.letter, pair.by_group, report.by)),
        )
        for pair in report.pairs
        if pair.by_group
    ]
    sections.append(section("By length of the prompt", _lengths(report)))
    if report.confusions:
        sections.append(section("Classes", _classes(report)))
    sections += [
        section(f"Rows that changed most: {pair.letter} against {first}", _changes(pair, first)) for pair in report.pairs
    ]
    sections.append(section("Training", _training(report)))
    return frame("Comparison of models", report.sentence, sections)


def shown(found: Table) -> str:
    """A table of the page."""
    return table(found.head, found.rows, numbers=sorted(found.numbers), caption=found.caption)


def _models(report: Report) -> str:
    notes = [f'<p class="worse">Refused by the gate. {safe(text)}</p>' for text in report.refusals]
    notes += [f"<p>{safe(text)}</p>" for text in report.notes]
    cost = tables.cost(report)
    costs = shown(cost) if cost else missing("Missing: no evaluation noted what it cost.")
    return "".join(notes) + shown(tables.models(report)) + costs


def _differences(report: Report, pair: Pair) -> str:
    if not pair.differences:
        return missing("Missing: no metric could be compared.")
    judged = [d for d in pair.differences if d.comparison.higher_is_better is not None]
    bars = [
        Bar(c.metric, _detail(d), c.difference, c.low, c.high, kind(c.word), flipped=not c.higher_is_better)
        for d in judged
        for c in (d.comparison,)
    ]
    note = f"with {coverage(report.level)} intervals, each row on its own scale"
    chart = figure("Differences", note, interval_chart(bars, title="Differences"))
    return f"{shown(tables.differences(report, pair))}{chart}"


def _detail(difference: Difference) -> str:
    base, other, change = tables.values(difference)
    return f"{base} \u2192 {other}: {change} {difference.comparison.interval}"


def kind(word: str) -> str:
    """The colour of a bar."""
    return word if word in KINDS else "none"


def short(text: str) -> str:
    """A name that fits into a chart."""
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 3].rstrip() + "..."


def _judged(report: Report, pair: Pair) -> str:
    bars = [
        Bar(
            short(one.criterion), f"win rate {tables.share(one.rate)} {tables.rate_interval(one)}, {one.rows:,} rows",
            one.rate - 0.5, one.low - 0.5, one.high - 0.5, kind(one.word),
        )
        for one in pair.judged
    ]  # fmt: skip
    why = tables.failures(pair)
    note = f"beyond one half, with {coverage(report.level)} intervals, each row on its own scale"
    chart = figure("Win rates", note, interval_chart(bars, title="Win rates"))
    return shown(tables.judged(report, pair)) + (shown(why) if why else "") + chart


def _lengths(report: Report) -> str:
    bars = histogram(report.prompt_lengths, title="Prompts", x_label="characters", y_label="rows")
    chart = figure("Lengths of the prompts", "", bars)
    parts = [shown(tables.groups(report, pair.letter, pair.by_length, "prompt")) for pair in report.pairs if pair.by_length]
    return chart + "".join(parts)


def _classes(report: Report) -> str:
    parts = [
        heat_table(
            found.classes, found.counts, corner="right class",
            caption=f"Rows by the right class and by the answer of {found.letter}, whose column has the class's number; "
            "darker: a larger share of the class.",
        )
        for found in report.confusions
    ]  # fmt: skip
    return "".join(parts)


def _changes(pair: Pair, first: str) -> str:
    parts = []
    for word, found in (("better", pair.better), ("worse", pair.worse)):
        parts.append(f'<h3><span class="{word}">{word}</span> (by {safe(pair.ranked_by)})</h3>')
        parts += [_change(change, first, pair.letter) for change in found]
        if not found:
            parts.append(missing("None."))
    return "".join(parts)


def _change(change: Change, first: str, other: str) -> str:
    scores = f"{first} {change.scores[0]:.4g}, {other} {change.scores[1]:.4g}"
    reference = "(none)" if change.reference is None else change.reference
    answers = ""
    if change.answers != (None, None):
        pairs = zip((first, other), change.answers, strict=True)
        boxes = "".join(f"<div>{quote(letter, '(none)' if text is None else text)}</div>" for letter, text in pairs)
        answers = f'<div class="grid">{boxes}</div>'
    return (
        f"<article><h3>{safe(change.row)}: {safe(scores)}</h3>"
        f'<div class="grid"><div>{quote("Prompt", change.prompt)}</div><div>{quote("Reference", reference)}</div></div>'
        f"{answers}</article>"
    )


def _training(report: Report) -> str:
    logs = {}
    notes = []
    for model in report.models:
        if model.run is not None:
            logs[model.letter], broken = read_log(model.run)
            if broken:
                notes.append(missing(f"Left out: {broken} lines of {model.letter}'s metrics.jsonl that cannot be read."))
    if not logs:
        return missing("No model is the folder of a run with a metrics.jsonl, so there are no curves.")
    figures = []
    for title, keys, unit, factor in CURVES:
        for key, name in keys:
            whole = title if len(keys) == 1 else f"{title}: {name}"
            lines = [Series(letter, found) for letter, log in logs.items() if (found := points(log, key, factor))]
            figures += _curves(whole, unit, lines)
    return f'<div class="grid">{"".join(figures)}</div>{"".join(notes)}'


def _curves(title: str, unit: str, lines: Sequence[Series]) -> list[str]:
    """Charts of at most `LINES` models each."""
    parts = [lines[i : i + LINES] for i in range(0, len(lines), LINES)]
    charts = [line_chart(part, title=title, x_label="optimiser step", y_label=unit) for part in parts]
    notes = [f"{part[0].name} only" if len(part) == 1 else "" for part in parts]
    return [figure(title, note, chart) for note, chart in zip(notes, charts, strict=True)]
