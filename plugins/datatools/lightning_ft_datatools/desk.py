"""The terminal of a review: a row is shown, a key is asked for, and what it says is noted."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_ft.cli.terminal import read_line, visible
from lightning_ft_datatools.editing import as_text, check_row, edited, values_of
from lightning_ft_datatools.reviewing import Action, Decision, Flagged, Journal, place_of, same

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.text import Text

    from lightning_ft.task import Task
    from lightning_ft.types import Row

KEYS = (
    "a accept, r reject, e edit, s or Enter skip; A, R: this row and all that are left of its kind; u undo,"
    " q stop and save, ? this list"
)
SAID: dict[str, str] = {"accept": "accepted", "reject": "rejected", "edit": "edited"}
"""What was done with a row."""
_ASK = "[a]ccept [r]eject [e]dit [s]kip [?] > "
_LAST = "That was the last one: [u]ndo, Enter saves > "
_ACTIONS: dict[str, Action] = {"a": "accept", "r": "reject"}
_PART = re.compile(r"#\d+$")


@dataclass
class Desk:
    """Asks about one row after the other.

    Args:
        items: the rows.
        others: rows by `file:line`, to show the one that a row is compared with.
        task: has to format an edited row.
        journal: takes the decisions.
    """

    items: Sequence[Flagged]
    others: Mapping[str, Row]
    task: Task
    journal: Journal
    _waiting: list[Flagged] = field(default_factory=list)
    _past: list[tuple[int, list[Row]]] = field(default_factory=list)
    """Of each answer the position and the rows that it decided about: none where the row was skipped."""
    _skipped: set[int] = field(default_factory=set)
    _drafts: dict[int, str] = field(default_factory=dict)
    """Edits that were not taken, to go on from."""

    def open_items(self) -> list[Flagged]:
        """Rows about which nothing is decided."""
        return [item for item in self.items if self.journal.of(item.row) is None]

    def skipped(self) -> list[str]:
        """Places of the rows that were skipped and are open still."""
        items = [self._waiting[position] for position in sorted(self._skipped)]
        return [place_of(item.row) for item in items if self.journal.of(item.row) is None]

    def run(self) -> None:
        """Ask until every row was asked about, or until `q` or the end of the input."""
        self._waiting = self.open_items()
        position, shown = 0, -1
        # Behind the last row the last answer can be taken back.
        while position < len(self._waiting) or self._past:
            at_end = position == len(self._waiting)
            if position != shown and not at_end:
                self._show(self._waiting[position], position + 1)
            shown = position
            key = read_line(_LAST if at_end else _ASK)
            if key == "q" or (at_end and not key):
                return
            if key == "u":
                position = self._undo(position)
            elif at_end:
                print(KEYS)
            else:
                position = self._answer(key, position)

    def _answer(self, key: str, position: int) -> int:
        """Do what a key says of a row; the position of the next one."""
        item = self._waiting[position]
        if key in ("a", "r"):
            self._decide(position, [item.row], Decision(_ACTIONS[key]))
        elif key in ("A", "R"):
            action = _ACTIONS[key.lower()]
            left = (other for other in self._waiting[position:] if other.kind == item.kind)
            rows = [other.row for other in left if self.journal.of(other.row) is None]
            self._decide(position, rows, Decision(action))
            print(f"{len(rows):,} rows of this kind: {SAID[action]}")
        elif key in ("", "s"):
            self._skipped.add(position)
            self._past.append((position, []))
        elif key != "e":
            print(KEYS)
            return position
        elif not self._edit(position):
            return position
        return self._next_open(position + 1)

    def _next_open(self, position: int) -> int:
        rest = range(position, len(self._waiting))
        return next((i for i in rest if self.journal.of(self._waiting[i].row) is None), len(self._waiting))

    def _decide(self, position: int, rows: list[Row], decision: Decision) -> None:
        self.journal.decide(rows, decision)
        self._past.append((position, rows))

    def _undo(self, position: int) -> int:
        """Take the last answer back; the position of its row."""
        if not self._past:
            print("Nothing to undo.")
            return position
        back, rows = self._past.pop()
        if rows:
            self.journal.undo(rows)
        self._skipped.discard(back)
        return back

    def _edit(self, position: int) -> bool:
        """Let the person edit a row; whether something came of it."""
        row = self._waiting[position].row
        before = as_text(row.values)
        try:
            text = self._drafts[position] = edited(self._drafts.get(position, before))
            values = values_of(text)
            check_row(self.task, row, values)
        except ValueError as error:
            print(f"Not taken: {visible(str(error).rstrip('.'))}.")
            return False
        del self._drafts[position]
        if same(values) == same(json.loads(before)):
            print("Nothing was changed.")
            return False
        self._decide(position, [row], Decision("edit", values))
        return True

    def _show(self, item: Flagged, number: int) -> None:
        from rich.console import Console
        from rich.text import Text

        # Text, never a str: what data hold is no markup.
        console = Console(highlight=False, soft_wrap=True)
        console.print(Text(f"\n{number:,} of {len(self._waiting):,}  {visible(place_of(item.row))}", style="bold"))
        for finding in item.findings:
            part = f"#{finding.part} " if finding.part else ""
            console.print(Text(visible(f"{part}{finding}"), style="yellow"))
        console.print(_fields(item.row))
        for place in dict.fromkeys(place_compared(finding.other) for finding in item.findings if finding.other):
            other = self.others.get(place)
            if other is not None and place != place_of(item.row):
                decision = self.journal.of(other)
                said = f" ({SAID[decision.action]})" if decision else ""
                console.print(Text(f"beside it {visible(place)}{said}", style="bold"))
                console.print(_fields(other, "dim"))


def place_compared(other: str) -> str:
    """`file:line` of the row that a finding names, without the number of its part."""
    return _PART.sub("", other)


def _fields(row: Row, style: str = "") -> Text:
    from rich.text import Text

    lines = Text(style=style)
    for column, value in row.values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)
        name = visible(column).replace("\n", "\\n")
        lines.append("\n" if lines else "").append(f"  {name}: ", style="cyan").append(visible(text).replace("\n", "\n    "))
    return lines
