"""`report.html`: one page over everything that a run left, without scripts and without anything from outside."""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any

from lightning_ft.charts import STYLE, Bar, Series, histogram, interval_chart, line_chart
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lightning_ft.bootstrap import Verdict

NOT_PRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters that no HTML or XML page may hold."""
CURVES: tuple[tuple[str, tuple[tuple[str, str], ...], str, float], ...] = (
    ("Loss", (("loss", "training"), ("val_loss", "validation")), "nats per token", 1),
    ("Token accuracy", (("token_accuracy", "training"), ("val_token_accuracy", "validation")), "per cent of tokens", 100),
    ("Learning rate", (("learning_rate", "learning rate"),), "peak group", 1),
    ("Gradient norm before clipping", (("grad_norm", "norm"),), "2-norm", 1),
    ("Throughput", (("tokens_per_second", "all"), ("supervised_tokens_per_second", "supervised")), "tokens per second", 1),
    ("Padding", (("padding_share", "padding"),), "per cent of tokens", 100),
    ("Peak memory", (("peak_memory", "memory"),), "GiB", 2.0**-30),
    ("Device use", (("device_use", "busy"),), "per cent of the time", 100),
)
"""Title, (key, name) of each line, unit, and factor from what is logged to the unit."""
AXES = frozenset({"step", "epoch", "seconds"})
PAGE_STYLE = """
:root { color-scheme: light dark; --page: #f3f4f6; --card: #ffffff; --text: #1b1f24; --soft: #545b64; --line: #dde1e6;
  --c0: #1d5fb4; --c1: #a8440a; --better: #14703a; --worse: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #1a1e24; --text: #e8eaed; --soft: #aab2bb;
  --line: #343b44; --c0: #7ab4ff; --c1: #ffb077; --better: #6fd08c; --worse: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: .6rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem;
  margin: 0 0 1rem; }
.lead { font-size: 1.1rem; } .soft, .missing, figcaption small { color: var(--soft); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.grid > * { min-width: 0; } figure { margin: 0; max-width: 30rem; } figcaption { font-weight: 600; margin: 0 0 .2rem; }
figcaption small { font-weight: 400; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; overflow-wrap: normal; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.value { overflow-wrap: anywhere; min-width: 6.5rem; }
.scroll, figure { margin-bottom: 1rem; } p { margin: .3rem 0; }
.better { color: var(--better); font-weight: 600; } .worse { color: var(--worse); font-weight: 600; }
pre { margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: .3rem; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; font: .85rem/1.4 ui-monospace, monospace; }
summary { cursor: pointer; font-weight: 600; } article { border-top: 1px solid var(--line); padding: .8rem 0; }
"""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, from whichever of its files are there, and return its path.

    Raises:
        UsageError: there is no such folder.
    """
    from lightning_ft.atomic import write_text

    if not folder.is_dir():
        raise UsageError(f"Expected a run folder, got '{folder}', which is none; type the folder that `fit` wrote.")
    path = folder / "report.html"
    write_text(path, render(folder))
    return path


def render(folder: Path) -> str:
    """The page's text."""
    verdict = _verdict(folder)
    sections = [
        _section("Verdict", _verdict_part(verdict)),
        _section("Answers before and after", _samples_part(verdict)),
        _section("Curves", _curves_part(folder)),
        _section("Data", _ledger_part(_json(folder / "ledger.json"))),
        _section("Run", _run_part(_json(folder / "run.json"))),
        _section("Configuration", _config_part(folder / "config.yaml")),
    ]
    name = safe(folder.resolve().name)
    lead = "No verdict: base and tuned model were not compared."
    if not isinstance(verdict, str):
        lead = safe(verdict.sentence().replace("->", "\u2192"))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\" />\n"
        f"<title>{name}: lightning-ft report</title>\n<style>{PAGE_STYLE}{STYLE}</style></head>\n"
        f'<body><header><h1>{name}</h1><p class="lead">{lead}</p></header>\n<main>{"".join(sections)}</main></body></html>\n'
    )


def safe(value: object) -> str:
    """Text that can stand anywhere in the page; characters that a page may not hold become the replacement character."""
    return html.escape(NOT_PRINTABLE.sub("\ufffd", str(value)))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{safe(title)}</h2>{body}</section>\n"


def _missing(text: str) -> str:
    return f'<p class="missing">{safe(text)}</p>'


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

    values = _json(folder / "verdict.json")
    if isinstance(values, str):
        return values
    try:
        return Verdict.from_dict(values)
    except (UsageError, KeyError, TypeError) as error:
        return f"Missing: verdict.json is not a verdict ({error})."


def _verdict_part(verdict: Verdict | str) -> str:
    if isinstance(verdict, str):
        return _missing(verdict)
    if not verdict.comparisons:
        return _missing("Missing: no metric could be compared.")
    level = f"{verdict.comparisons[0].level:.0%}"
    rows = [
        (
            f"{c.metric} ({'higher' if c.higher_is_better else 'lower'} is better)", c.shown(c.base), c.shown(c.tuned),
            c.shown(c.difference, signed=True), c.interval, c.word,
        )
        for c in verdict.comparisons
    ]  # fmt: skip
    caption = (
        f"{verdict.rows} held-out rows, the same for both models. Intervals: paired bootstrap, {level} for each metric by "
        "itself. pp: percentage points."
    )
    bars = [
        Bar(
            c.metric, f"{c.shown(c.base)} \u2192 {c.shown(c.tuned)}: {c.shown(c.difference, signed=True)} {c.interval}",
            c.difference, c.low, c.high, c.word if c.better is not None else "none", not c.higher_is_better,
        )
        for c in verdict.comparisons
    ]  # fmt: skip
    head = ("metric", "base", "tuned", "difference", f"{level} interval", "tuned is")
    table = _table(head, rows, numbers=range(1, 5), caption=caption)
    note = f"with {level} intervals, each row on its own scale"
    chart = _figure("Differences", note, interval_chart(bars, title="Differences"))
    return f'<div class="grid"><div>{table}</div>{chart}</div>'


def _samples_part(verdict: Verdict | str) -> str:
    samples = [] if isinstance(verdict, str) else verdict.samples
    if not samples:
        return _missing("Missing: no answers were generated (no metric of this run reads text, or there was no verdict).")
    parts = []
    for sample in samples:
        reference = sample.get("reference")
        given = "(none)" if reference is None else reference
        parts.append(
            f"<article><h3>{safe(sample.get('row', ''))}</h3>"
            f'<div class="grid"><div>{_quote("Prompt", sample.get("prompt"))}</div>'
            f"<div>{_quote('Reference', given)}</div></div>"
            f'<div class="grid"><div>{_quote("Before (base)", sample.get("before"))}</div>'
            f"<div>{_quote('After (tuned)', sample.get('after'))}</div></div></article>"
        )
    return "".join(parts)


def _quote(title: str, text: object) -> str:
    return f'<p class="soft">{safe(title)}</p><pre dir="auto" tabindex="0">{safe(text) or "(empty)"}</pre>'


def _curves_part(folder: Path) -> str:
    try:
        raw = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return _missing("Missing: the run left no metrics.jsonl.")
    lines, broken = [], 0
    for text in raw:
        if text.strip():
            try:
                value = json.loads(text)
                lines.append({k: float(v) for k, v in value.items() if isinstance(v, (int, float)) and not isinstance(v, bool)})
            except (ValueError, AttributeError):
                broken += 1
    figures = [_curve(lines, *curve) for curve in CURVES]
    known = {key for _, keys, _, _ in CURVES for key, _ in keys} | AXES
    further = sorted({key for line in lines for key in line} - known)
    figures += [_curve(lines, key, ((key, key),), "as logged", 1) for key in further]
    note = _missing(f"Left out: {broken} lines of metrics.jsonl that cannot be read.") if broken else ""
    return f'<div class="grid">{"".join(figures)}</div>{note}'


def _curve(lines: Sequence[Mapping[str, float]], title: str, keys: Sequence[tuple[str, str]], unit: str, factor: float) -> str:
    series = []
    for key, name in keys:
        points = [(line["step"], line[key] * factor) for line in lines if key in line and "step" in line]
        if points:
            series.append(Series(name, points))
    only = f"{series[0].name} only" if len(series) == 1 < len(keys) else ""
    return _figure(title, only, line_chart(series, title=title, x_label="optimiser step", y_label=unit))


def _figure(title: str, note: str, svg: str) -> str:
    body = svg or _missing("Missing: nothing was logged.")
    return f"<figure><figcaption>{safe(title)} <small>{safe(note) if svg else ''}</small></figcaption>{body}</figure>"


def _ledger_part(ledger: Any) -> str:
    if isinstance(ledger, str):
        return _missing(ledger)
    sources = {str(name): counts for name, counts in _object(ledger.get("sources")).items() if isinstance(counts, dict)}
    total = _object(ledger.get("total"))
    if not sources and not total:
        return _missing("Missing: ledger.json holds no accounts.")
    shown = [*sources.items(), *([("total", total)] if len(sources) != 1 and total else [])]
    keys = list(dict.fromkeys(key for _, counts in shown for key, value in counts.items() if not isinstance(value, dict)))
    rows = [(name, *(_plain(counts.get(key)) for key in keys)) for name, counts in shown]
    limit = ledger.get("max_length")
    caption = "Rows and tokens of each source" + (f"; longest row allowed: {_plain(limit)} tokens." if limit else ".")
    head = ("source", *(key.replace("_", " ") for key in keys))
    parts = [_table(head, rows, numbers=range(1, len(head)), caption=caption)]
    account = total or next(iter(sources.values()))
    nested = [(key.replace("_", " "), name, _plain(count)) for key in account for name, count in _object(account[key]).items()]
    if nested:
        parts.append(_table(("account", "of", "count"), nested, numbers=[2], caption="All sources together."))
    figures = []
    for key, title in (("lengths", "Row lengths"), ("cut_lengths", "Full lengths of the rows that were cut")):
        counts = {int(length): int(count) for length, count in _object(ledger.get(key)).items()}
        if counts:
            figures.append(_figure(title, "", histogram(counts, title=title, x_label="tokens", y_label="rows")))
    note = "" if figures else _missing("No length chart: the ledger keeps the lengths of rows that were cut, and none was.")
    return "".join(parts) + (f'<div class="grid">{"".join(figures)}</div>' if figures else note)


def _run_part(run: Any) -> str:
    if isinstance(run, str):
        return _missing(run)
    rows = [(name, _plain(value)) for name, value in _flat(run)]
    return f'<details open="open"><summary>run.json</summary>{_table(("what", "value"), rows)}</details>'


def _config_part(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _missing("Missing: the run left no config.yaml.")
    return f'<details><summary>config.yaml</summary><pre tabindex="0">{safe(text)}</pre></details>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), caption: str = "") -> str:
    """A table that scrolls sideways by itself where it is wider than the page."""
    kinds = ["number" if i in numbers else "value" for i in range(len(head))]
    top = "".join(f'<th scope="col" class="{kind}">{safe(cell)}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = "".join("<tr>" + "".join(_cell(kind, cell) for kind, cell in zip(kinds, row, strict=True)) + "</tr>" for row in rows)
    words = f'<p class="soft">{safe(caption)}</p>' if caption else ""
    inner = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'{words}<div class="scroll" tabindex="0" role="region" aria-label="{safe(caption or " ".join(head))}">{inner}</div>'


def _cell(kind: str, cell: str) -> str:
    word = f" {cell}" if cell in ("better", "worse") else ""
    return f'<td class="{kind}{word}">{safe(cell)}</td>'


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
