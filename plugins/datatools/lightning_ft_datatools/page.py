"""A report of `data check` as an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.charts import histogram
from lightning_ft.page import figure, missing, section, table
from lightning_ft.page import page as frame
from lightning_ft_datatools.findings import KINDS

if TYPE_CHECKING:
    from lightning_ft_datatools.findings import Report

LISTED = 500
"""Findings of a kind that the page lists; the JSON report has all."""


def page(report: Report) -> str:
    """The page's text."""
    names = ", ".join(report.files)
    total = len(report.issues)
    lead = f"{report.summary}, " + (f"{total:,} issues of {len(report.counts)} kinds." if total else "no issues.")
    sections = [
        section("Issues", _summary(report)),
        section("Lengths", _lengths(report)),
        section("Balance and variety", _balance(report)),
        *(section(f"{kind}: {KINDS[kind].title}", _findings(report, kind)) for kind in report.counts),
    ]
    return frame(names, lead, sections)


def _summary(report: Report) -> str:
    if not report.counts:
        return missing("None.")
    rows = [
        (f"{count:,}", KINDS[kind].severity, kind, KINDS[kind].title, KINDS[kind].advice)
        for kind, count in report.counts.items()
    ]
    words = table(("issues", "severity", "kind", "what", "what to do"), rows, numbers=[0])
    notes = [(text,) for text in (*report.remarks, *report.advice)]
    return words + (table(("as a whole",), notes) if notes else "")


def _lengths(report: Report) -> str:
    known = report.lengths
    if not known.get("tokens"):
        return missing("No row has tokens.")
    marks = [(name.replace("p", "") + " %", f"{value:,}") for name, value in known["percentiles"].items()]
    facts = [
        ("tokens", f"{known['tokens']:,}"),
        ("tokens with a loss", f"{known['supervised']:,}"),
        ("max_length", f"{known['max_length']:,}"),
        ("rows that it cuts", f"{known['cut_rows']:,}"),
        ("tokens that it cuts", f"{known['cut_tokens']:,}"),
        ("of them with a loss", f"{known['cut_supervised']:,}"),
        ("characters of a prompt, on average", f"{report.avg_prompt_length:,.0f}"),
        ("characters of an answer, on average", f"{report.avg_response_length:,.0f}"),
    ]
    counts = {start: count for start, _, count in known["histogram"] if count}
    chart = figure("Tokens of a row", report.model, histogram(counts, title="Tokens", x_label="tokens", y_label="rows"))
    tables = table(("what", "number"), facts, numbers=[1]) + table(("rows", "tokens at most"), marks, numbers=[1])
    return f'<div class="grid"><div>{tables}</div>{chart}</div>'


def _balance(report: Report) -> str:
    parts = []
    for name, counts in report.balance.items():
        rows = [(key, f"{count:,}", f"{100 * count / sum(counts.values()):.1f} %") for key, count in counts.items()]
        parts.append(table((name, "examples", "share"), rows[:LISTED], numbers=[1, 2]))
    spoken = [(name, f"{100 * share:.1f} %") for name, share in report.languages.items()]
    if spoken:
        parts.append(table(("language", "share"), spoken, numbers=[1]))
    varied = [(name.replace("_", " "), f"{value:.3f}") for name, value in report.diversity.items()]
    if varied:
        parts.append(table(("diversity", "value"), varied, numbers=[1]))
    return "".join(parts) or missing("Nothing to compare.")


def _findings(report: Report, kind: str) -> str:
    own = [finding for finding in report.issues if finding.kind == kind]
    rows = [(finding.row, finding.detail, finding.other or "") for finding in own[:LISTED]]
    more = f"The first {LISTED} of {len(own):,}." if len(own) > LISTED else ""
    return table(("row", "what was seen", "compare"), rows, caption=more)
