"""A report as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.tables import table
from lightning_ft_datatools.findings import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft_datatools.findings import Report

SHOWN = 3
"""Findings of a kind that the terminal shows."""
_WIDTH = 40
_CLASSES = 12  # of a balance that are listed


def lines(report: Report, shown: int = SHOWN) -> Iterator[str]:
    """The report, the most important last, where the eye is when a command ends."""
    yield f"{', '.join(report.files)}: {report.summary}"
    yield from _lengths(report)
    for name, counts in report.balance.items():
        parts = [f"{key} {count:,}" for key, count in list(counts.items())[:_CLASSES]]
        more = f", and {len(counts) - _CLASSES} more" if len(counts) > _CLASSES else ""
        yield f"by {name}: {', '.join(parts)}{more}"
    if report.languages:
        yield "languages: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in list(report.languages.items())[:6])
    if report.diversity:
        yield "diversity: " + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in report.diversity.items())
    yield ""
    yield from _issues(report, shown)
    for text in (*report.remarks, *report.advice):
        yield f"- {text}"


def _lengths(report: Report) -> Iterator[str]:
    known = report.lengths
    if not known.get("tokens"):
        return
    yield (
        f"characters: prompt {report.avg_prompt_length:,.0f}, answer {report.avg_response_length:,.0f} on average; "
        f"{known['tokens']:,} tokens, {known['supervised']:,} of them with a loss (tokenizer: {report.model})"
    )
    marks = known["percentiles"]
    yield "tokens of a row: " + ", ".join(f"{name.replace('p', '')} % at most {value:,}" for name, value in marks.items())
    most = max(count for _, _, count in known["histogram"])
    for start, end, count in known["histogram"]:
        bar = "#" * -(-_WIDTH * count // most)
        yield f"  {start:>7,} to {end:<7,} {count:>8,} {bar}".rstrip()
    yield (
        f"max_length {known['max_length']:,} cuts {known['cut_rows']:,} rows by {known['cut_tokens']:,} tokens, "
        f"{known['cut_supervised']:,} of them with a loss"
    )


def _issues(report: Report, shown: int) -> Iterator[str]:
    counts = report.counts
    if not counts:
        yield "No issues found."
        return
    rows = [(f"{count:,}", KINDS[kind].severity, kind, KINDS[kind].title, KINDS[kind].advice) for kind, count in counts.items()]
    yield table(("issues", "severity", "kind", "what", "what to do"), rows, numbers=frozenset({0}))
    yield ""
    for kind, count in counts.items():
        own = [finding for finding in report.issues if finding.kind == kind]
        for finding in own[:shown]:
            yield f"  {finding.row}: {finding}"
        if count > shown:
            yield f"  and {count - shown:,} more {kind}"
    yield ""
