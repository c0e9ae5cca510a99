"""`report.html`: one page over everything that a run left, without scripts and without anything from outside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.charts import Bar, Series, histogram, interval_chart, line_chart
from lightning_ft.curves import AXES, CURVES, points, read_log
from lightning_ft.errors import UsageError
from lightning_ft.monitor import measured, measured_in_training
from lightning_ft.page import figure, missing, page, quote, safe, section, table
from lightning_ft.signs import RULES, lines_of, signs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lightning_ft.bootstrap import Verdict

MIXED = ("rows", "rows_per_epoch", "share")
"""What is told of each source of a mixture."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, from whichever of its files are there, and return its path.

    Raises:
        UsageError: there is no such folder.
    """
    from lightning_ft.atomic import write_text

    if not folder.is_dir():
        raise UsageError(f"Expected a run folder, got '{folder}', which is none; type the folder that `fit` wrote.")
    path = folder / layout.REPORT
    write_text(path, render(folder))
    return path


def render(folder: Path) -> str:
    """The page's text."""
    verdict = _verdict(folder)
    sections = [
        section("Verdict", _verdict_part(verdict)),
        section("Signs of trouble", _signs_part(folder, verdict)),
        section("Answers before and after", _samples_part(verdict)),
        section("Curves", _curves_part(folder)),
        section("Data", _ledger_part(_json(folder / layout.LEDGER))),
        section("Run", _run_part(_json(folder / layout.RECORD))),
        section("Configuration", _config_part(folder / layout.CONFIG)),
    ]
    lead = "No verdict: base and tuned model were not compared."
    if not isinstance(verdict, str):
        lead = verdict.sentence().replace("->", "\u2192")
    return page(folder.resolve().name, lead, sections)


def _json(path: Path) -> Any:
    """The file's content, or a sentence (a `str`) that says why there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"Missing: the run left no {path.name}."
    except (OSError, ValueError) as error:
        return f"Missing: {path.name} cannot be read ({error})."
    return value if isinstance(value, dict) else f"Missing: {path.name} does not hold an object."


def _verdict(folder: Path) -> Verdict | str:
    from lightning_ft.bootstrap import Verdict

    values = _json(folder / layout.VERDICT)
    if isinstance(values, str):
        return values
    try:
        return Verdict.from_dict(values)
    except (UsageError, KeyError, TypeError) as error:
        return f"Missing: verdict.json is not a verdict ({error})."


def _verdict_part(verdict: Verdict | str) -> str:
    from lightning_ft.bootstrap import coverage

    if isinstance(verdict, str):
        return missing(verdict)
    if not verdict.comparisons:
        return missing("Missing: no metric could be compared.")
    level = coverage(verdict.comparisons[0].level)
    rows = [
        (
            f"{c.metric} ({c.direction})", c.shown(c.base), c.shown(c.tuned),
            c.shown(c.difference, signed=True), c.interval, c.word,
        )
        for c in verdict.comparisons
    ]  # fmt: skip
    caption = (
        f"{verdict.rows} held-out rows, the same for both models. Intervals: paired bootstrap, {level} for each metric by "
        "itself. pp: percentage points."
    )
    if verdict.retention:
        rows += [
            (f"general text: {c.metric} ({c.direction})", c.shown(c.base), c.shown(c.tuned),
             c.shown(c.difference, signed=True), c.interval, c.word)
            for c in verdict.retention
        ]  # fmt: skip
        caption += f" General text: {verdict.retention[0].rows} rows that show what was forgotten."
    bars = [
        Bar(
            c.metric, f"{c.shown(c.base)} \u2192 {c.shown(c.tuned)}: {c.shown(c.difference, signed=True)} {c.interval}",
            c.difference, c.low, c.high, c.word if c.better is not None else "none", not c.higher_is_better,
        )
        for c in verdict.comparisons
        if c.higher_is_better is not None  # the chart has a better and a worse side
    ]  # fmt: skip
    head = ("metric", "base", "tuned", "difference", f"{level} interval", "tuned is")
    numbers = table(head, rows, numbers=range(1, 5), caption=caption)
    note = f"with {level} intervals, each row on its own scale"
    chart = figure("Differences", note, interval_chart(bars, title="Differences"))
    return f'<div class="grid"><div>{numbers}</div>{chart}</div>'


def _signs_part(folder: Path, verdict: Verdict | str) -> str:
    lines = lines_of(folder / layout.LOG)
    found = signs(lines) if isinstance(verdict, str) else verdict.signs
    if not found:
        losses = sum("loss" in line for line in lines)
        return f"<p>None, by {len(RULES)} rules about the course of {losses} training losses, and one about forgetting.</p>"
    rows = [(sign.name, sign.found, sign.change, sign.rule) for sign in found]
    return table(("sign", "what was seen", "what to change", "given when"), rows)


def _samples_part(verdict: Verdict | str) -> str:
    samples = [] if isinstance(verdict, str) else verdict.samples
    if not samples:
        return missing("Missing: no answers were generated (no metric of this run reads text, or there was no verdict).")
    parts = []
    for sample in samples:
        reference = sample.get("reference")
        given = "(none)" if reference is None else reference
        parts.append(
            f"<article><h3>{safe(sample.get('row', ''))}</h3>"
            f'<div class="grid"><div>{quote("Prompt", sample.get("prompt"))}</div>'
            f"<div>{quote('Reference', given)}</div></div>"
            f'<div class="grid"><div>{quote("Before (base)", sample.get("before"))}</div>'
            f"<div>{quote('After (tuned)', sample.get('after'))}</div></div></article>"
        )
    return "".join(parts)


def _curves_part(folder: Path) -> str:
    try:
        lines, broken = read_log(folder)
    except OSError:
        return missing("Missing: the run left no metrics.jsonl.")
    figures = [_curve(lines, *curve) for curve in CURVES]
    known = {key for _, keys, _, _ in CURVES for key, _ in keys} | AXES
    further = sorted({measured_in_training(key) for line in lines for key in line if key not in known})
    figures += [_curve(lines, key, ((key, "training"), (measured(key), "validation")), "as logged", 1) for key in further]
    note = missing(f"Left out: {broken} lines of metrics.jsonl that cannot be read.") if broken else ""
    return f'<div class="grid">{"".join(figures)}</div>{note}'


def _curve(lines: Sequence[Mapping[str, float]], title: str, keys: Sequence[tuple[str, str]], unit: str, factor: float) -> str:
    series = []
    for key, name in keys:
        if found := points(lines, key, factor):
            series.append(Series(name, found))
    only = f"{series[0].name} only" if len(series) == 1 < len(keys) else ""
    return figure(title, only, line_chart(series, title=title, x_label="optimiser step", y_label=unit))


def _ledger_part(ledger: Any) -> str:
    if isinstance(ledger, str):
        return missing(ledger)
    sources = {str(name): counts for name, counts in _object(ledger.get("sources")).items() if isinstance(counts, dict)}
    total = _object(ledger.get("total"))
    if not sources and not total:
        return missing("Missing: ledger.json holds no accounts.")
    shown = [*sources.items(), *([("total", total)] if len(sources) != 1 and total else [])]
    keys = list(dict.fromkeys(key for _, counts in shown for key, value in counts.items() if not isinstance(value, dict)))
    rows = [(name, *(_plain(counts.get(key)) for key in keys)) for name, counts in shown]
    limit = ledger.get("max_length")
    caption = "Rows and tokens of each source" + (f"; longest row allowed: {_plain(limit)} tokens." if limit else ".")
    head = ("source", *(key.replace("_", " ") for key in keys))
    parts = [table(head, rows, numbers=range(1, len(head)), caption=caption)]
    if mixture := _object(ledger.get("mixture")):
        mixed = [(name, *(_plain(_object(own).get(key)) for key in MIXED)) for name, own in mixture.items()]
        columns = ("source", *(key.replace("_", " ") for key in MIXED))
        parts.append(table(columns, mixed, numbers=[1, 2, 3], caption="Training rows of an epoch."))
    account = total or next(iter(sources.values()))
    nested = [(key.replace("_", " "), name, _plain(count)) for key in account for name, count in _object(account[key]).items()]
    if nested:
        parts.append(table(("account", "of", "count"), nested, numbers=[2], caption="All sources together."))
    figures = []
    for key, title in (("lengths", "Row lengths"), ("cut_lengths", "Full lengths of the rows that were cut")):
        counts = {int(length): int(count) for length, count in _object(ledger.get(key)).items()}
        if counts:
            figures.append(figure(title, "", histogram(counts, title=title, x_label="tokens", y_label="rows")))
    note = "" if figures else missing("No length chart: no row was used.")
    return "".join(parts) + (f'<div class="grid">{"".join(figures)}</div>' if figures else note)


def _run_part(run: Any) -> str:
    if isinstance(run, str):
        return missing(run)
    # A run says that it has finished when its report is there: one that is killed before is resumed, and writes it again.
    rows = [(name, _plain(value)) for name, value in _flat(run) if name != "status"]
    return f'<details open="open"><summary>run.json</summary>{table(("what", "value"), rows)}</details>'


def _config_part(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return missing("Missing: the run left no config.yaml.")
    return f'<details><summary>config.yaml</summary><pre tabindex="0">{safe(text)}</pre></details>'


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values under dotted names."""
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        out += _flat(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return out
