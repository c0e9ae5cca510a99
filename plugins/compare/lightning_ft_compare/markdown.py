"""A comparison as Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lightning_ft_compare import tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft_compare.results import Change, Confusion, Report
    from lightning_ft_compare.tables import Table


def markdown(report: Report) -> str:
    """The text of report.md."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterator[str]:
    first = report.models[0].letter
    yield "# Comparison of models"
    yield escaped(report.sentence)
    yield from (f"**Refused by the gate.** {escaped(text)}" for text in report.refusals)
    yield from (f"Note: {escaped(text)}" for text in report.notes)
    yield "## Models\n\n" + table(tables.models(report))
    cost = tables.cost(report)
    if cost:
        yield "### Cost\n\n" + table(cost)
    for pair in report.pairs:
        yield f"## {pair.letter} against {first}\n\n" + table(tables.differences(report, pair))
    yield "## Wins and losses\n\n" + table(tables.wins(report))
    for pair in report.pairs:
        if pair.judged:
            yield f"## Judged: {pair.letter} against {first}\n\n" + table(tables.judged(report, pair))
            why = tables.failures(pair)
            yield table(why) if why else ""
    for pair in report.pairs:
        if pair.by_group:
            parts = tables.groups(report, pair.letter, pair.by_group, report.by)
            yield f"## {pair.letter} against {first} by {escaped(report.by)}\n\n" + table(parts)
        parts = tables.groups(report, pair.letter, pair.by_length, "prompt")
        yield f"## {pair.letter} against {first} by length of the prompt\n\n" + table(parts)
    for confusion in report.confusions:
        yield f"## Classes of {confusion.letter}\n\n" + _classes(confusion)
    for pair in report.pairs:
        for words, found in (("better", pair.better), ("worse", pair.worse)):
            if found:
                yield f"## Rows in which {pair.letter} is most clearly {words} (by {escaped(pair.ranked_by)})"
                yield from (_change(change, first, pair.letter) for change in found)


def table(found: Table) -> str:
    """A table, under its caption."""
    lines = [
        "| " + " | ".join(escaped(cell) for cell in found.head) + " |",
        "| " + " | ".join("---:" if i in found.numbers else "---" for i in range(len(found.head))) + " |",
        *("| " + " | ".join(escaped(cell) for cell in row) + " |" for row in found.rows),
    ]
    return (f"{escaped(found.caption)}\n\n" if found.caption else "") + "\n".join(lines)


def escaped(text: str) -> str:
    """Text that is shown as it is: on one line, and without what Markdown or HTML would read."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def block(text: str) -> str:
    """A text of somebody else's as a code block, whose fence is longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _classes(found: Confusion) -> str:
    head = ("right class", *(str(i) for i in range(1, 1 + len(found.classes))))
    pairs = enumerate(zip(found.classes, found.counts, strict=True), start=1)
    rows = tuple((f"{i} {name}", *(f"{count:,}" for count in counts)) for i, (name, counts) in pairs)
    caption = "Rows by the right class and by the answer, whose column has the class's number."
    return table(tables.Table(head, rows, frozenset(range(1, len(head))), caption))


def _change(change: Change, first: str, other: str) -> str:
    parts = [f"### {escaped(change.row)}: {change.scores[0]:.4g} -> {change.scores[1]:.4g}", "Prompt:", block(change.prompt)]
    if change.reference is not None:
        parts += ["Reference:", block(change.reference)]
    for letter, answer in zip((first, other), change.answers, strict=True):
        if answer is not None:
            parts += [f"{letter}:", block(answer or "(empty)")]
    return "\n\n".join(parts)
