"""Pages without scripts and without anything from outside: their frame, their style and their parts."""

from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING

from lightning_ft.charts import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NOT_PRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters that no HTML or XML page may hold."""
HEATS = 5
"""Shades of a table of counts."""
PAGE_STYLE = """
:root { color-scheme: light dark; --page: #f3f4f6; --card: #ffffff; --text: #1b1f24; --soft: #545b64; --line: #dde1e6;
  --c0: #1d5fb4; --c1: #a8440a; --c2: #7a3db8; --c3: #0f6b62; --better: #14703a; --worse: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #1a1e24; --text: #e8eaed; --soft: #aab2bb;
  --line: #343b44; --c0: #7ab4ff; --c1: #ffb077; --c2: #cda7ff; --c3: #62d2c4; --better: #6fd08c; --worse: #ff8a80; } }
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
.cards thead { display: none; } .cards td { border: 0; padding: 0; min-width: 0; }
.cards tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .3rem .8rem; padding: .5rem 0;
  border-bottom: 1px solid var(--line); }
.cards td.number { text-align: left; white-space: normal; }
.cards td::before { content: attr(data-head); display: block; color: var(--soft); font-size: .8rem; }
@media (max-width: 45rem) {
.stacked thead { display: none; } .stacked tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
.stacked td { display: grid; grid-template-columns: 8rem minmax(0, 1fr); gap: .6rem; padding: .1rem 0; border: 0; }
.stacked td.number { text-align: left; white-space: normal; }
.stacked td::before { content: attr(data-head); color: var(--soft); }
}
.scroll, figure { margin-bottom: 1rem; } p { margin: .3rem 0; }
.better { color: var(--better); font-weight: 600; } .worse { color: var(--worse); font-weight: 600; }
pre { margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: .3rem; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; font: .85rem/1.4 ui-monospace, monospace; }
summary { cursor: pointer; font-weight: 600; } article { border-top: 1px solid var(--line); padding: .8rem 0; }
.heat td, .heat th { padding: .3rem .5rem; }
"""
PAGE_STYLE += "".join(
    f".heat{i} {{ background: color-mix(in srgb, var(--c0) {8 * i}%, var(--card)); }}\n" for i in range(1, HEATS + 1)
)


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """A whole document.

    Args:
        title: what the page is about, as plain text.
        lead: its most important sentence, as plain text.
        sections: as `section` makes them.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\" />\n"
        f"<title>{safe(title)}: lightning-ft report</title>\n<style>{PAGE_STYLE}{STYLE}</style></head>\n"
        f'<body><header><h1>{safe(title)}</h1><p class="lead">{safe(lead)}</p></header>\n'
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def safe(value: object) -> str:
    """Text that can stand anywhere in the page; characters that a page may not hold become the replacement character."""
    return html.escape(NOT_PRINTABLE.sub("\ufffd", str(value)))


def section(title: str, body: str) -> str:
    """A part of a page under its heading."""
    return f"<section><h2>{safe(title)}</h2>{body}</section>\n"


def missing(text: str) -> str:
    """What stands where something is not there."""
    return f'<p class="missing">{safe(text)}</p>'


def figure(title: str, note: str, svg: str) -> str:
    """A chart with its title."""
    body = svg or missing("Missing: nothing was logged.")
    return f"<figure><figcaption>{safe(title)} <small>{safe(note) if svg else ''}</small></figcaption>{body}</figure>"


def quote(title: str, text: object) -> str:
    """A text of somebody else's under its title, as it is."""
    return f'<p class="soft">{safe(title)}</p><pre dir="auto" tabindex="0">{safe(text) or "(empty)"}</pre>'


MOST_COLUMNS = 10
"""Columns that stand side by side."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), caption: str = "") -> str:
    """A table of which everything is in sight.

    On a narrow page the cells of a row stand one below the other, each with the head of its column; with many columns a row is
    a card on any page.
    """
    kinds = ["number" if i in numbers else "value" for i in range(len(head))]
    top = "".join(f'<th scope="col" class="{kind}">{safe(cell)}</th>' for kind, cell in zip(kinds, head, strict=True))
    lines = ("".join(_cell(*cell) for cell in zip(kinds, head, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    words = f'<p class="soft">{safe(caption)}</p>' if caption else ""
    form = "cards" if len(head) > MOST_COLUMNS else "stacked" if len(head) > 2 else "pairs"
    inner = f'<table class="{form}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'{words}<div class="scroll" tabindex="0" role="region" aria-label="{safe(caption or " ".join(head))}">{inner}</div>'


def heat_table(names: Sequence[str], counts: Sequence[Sequence[int]], *, corner: str, caption: str) -> str:
    """Counts by row and column, which have the same names, the darker the larger their share of the row.

    Args:
        names: of rows and columns; a column's head is its number, which stands before the row's name.
        counts: a row of counts for each name.
        corner: what rows and columns are.
        caption: what is counted.
    """
    top = "".join(f'<th scope="col" class="number">{i}</th>' for i in range(1, len(names) + 1))
    body = ""
    for i, (name, row) in enumerate(zip(names, counts, strict=True), start=1):
        levels = [math.ceil(HEATS * count / sum(row)) if count else 0 for count in row]
        cells = "".join(f'<td class="number heat{level}">{count:,}</td>' for level, count in zip(levels, row, strict=True))
        body += f'<tr><th scope="row" class="value">{i} {safe(name)}</th>{cells}</tr>'
    head = f'<thead><tr><th scope="col" class="value">{safe(corner)}</th>{top}</tr></thead>'
    inner = f'<table class="heat">{head}<tbody>{body}</tbody></table>'
    return (
        f'<p class="soft">{safe(caption)}</p><div class="scroll" tabindex="0" role="region" aria-label="{safe(caption)}">'
        f"{inner}</div>"
    )


def _cell(kind: str, head: str, cell: str) -> str:
    word = f" {cell}" if cell in ("better", "worse") else ""
    return f'<td class="{kind}{word}" data-head="{safe(head)}">{safe(cell)}</td>'
