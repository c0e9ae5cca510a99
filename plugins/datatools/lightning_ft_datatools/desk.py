"""The terminal of a review: a row is shown, a key is asked for, and the editor is opened."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError
from lightning_ft_datatools.reviewing import Decision, Flagged, Journal, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.task import Task
    from lightning_ft.types import Row

KEYS = "a accept, r reject, e edit, s skip; A, R: also all others of this kind; u undo, q stop and save, ? this list"
_EDITORS = ("nano", "vi")


@dataclass
class Desk:
    """Asks about one row after the other.

    Args:
        items: the rows.
        others: all rows by `file:line`, to show the one that a row is compared with.
        task: has to format an edited row.
        journal: takes the decisions.
    """

    items: Sequence[Flagged]
    others: Mapping[str, Row]
    task: Task
    journal: Journal
    _past: list[list[Flagged]] = field(default_factory=list)

    def open_items(self) -> list[Flagged]:
        """Rows about which nothing is decided."""
        return [item for item in self.items if self.journal.of(item.row) is None]

    def run(self) -> None:
        """Ask until every row was asked about once, or until `q` or the end of the input."""
        waiting = self.open_items()
        position = 0
        while position < len(waiting):
            item = waiting[position]
            if self.journal.of(item.row) is not None:  # with all others of its kind
                position += 1
                continue
            self._show(item, position + 1, len(waiting))
            key = self._key()
            if key == "q":
                return
            if key == "u":
                back = self._undo()
                position = waiting.index(back) if back in waiting else position
            elif key == "e":
                position += self._edit(item)
            elif key in ("a", "r"):
                self._decide([item], "accept" if key == "a" else "reject")
                position += 1
            elif key in ("A", "R"):
                alike = [
                    other for other in waiting[position:] if other.kind == item.kind and self.journal.of(other.row) is None
                ]
                self._decide(alike, "accept" if key == "A" else "reject")
                print(f"{len(alike):,} rows of this kind: {'accepted' if key == 'A' else 'rejected'}")
                position += 1
            elif key in ("", "s"):
                position += 1
            else:
                print(KEYS)

    def _key(self) -> str:
        try:
            return input("[a]ccept [r]eject [e]dit [s]kip [?] > ").strip()[:1]
        except EOFError:
            print()
            return "q"

    def _decide(self, items: Sequence[Flagged], action: Any, values: Mapping[str, Any] | None = None) -> None:
        for item in items:
            self.journal.decide(item.row, Decision(action, values))
        self._past.append(list(items))

    def _undo(self) -> Flagged | None:
        """Take the last decision back; the row that it was about."""
        if not self._past:
            print("Nothing to undo.")
            return None
        items = self._past.pop()
        for item in items:
            self.journal.decide(item.row, Decision("undo"))
        return items[0]

    def _edit(self, item: Flagged) -> bool:
        """Let the person edit a row; whether something came of it."""
        text = json.dumps(dict(item.row.values), indent=2, ensure_ascii=False, default=str) + "\n"
        try:
            new = edited(text)
            values = _row_of(new)
            self._try(item.row, values)
        except ValueError as error:
            print(f"Not taken: {error}.")
            return False
        if values == item.row.values:
            print("Nothing was changed.")
            return False
        self._decide([item], "edit", values)
        return True

    def _try(self, row: Row, values: Mapping[str, Any]) -> None:
        from lightning_ft.data.unfold import examples_of

        examples_of(self.task, replace(row, values=values))

    def _show(self, item: Flagged, number: int, total: int) -> None:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        console.print(Text(f"\n{number:,} of {total:,}  {place_of(item.row)}", style="bold"))
        for finding in item.findings:
            console.print(Text(visible(f"{finding.kind}: {finding.detail} {finding.other or ''}".rstrip()), style="yellow"))
        console.print(Text(_fields(item.row)))
        for finding in item.findings:
            other = self.others.get((finding.other or "").partition("#")[0])
            if other is not None and place_of(other) != place_of(item.row):
                console.print(Text(f"beside it {place_of(other)}", style="bold"))
                console.print(Text(_fields(other), style="dim"))


def _fields(row: Row) -> str:
    parts = []
    for column, value in row.values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)
        parts.append(f"  {column}: " + visible(text).replace("\n", "\n    "))
    return "\n".join(parts)


def visible(text: str) -> str:
    """A text whose control characters are written out, so that data cannot steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def edited(text: str) -> str:
    """A text after the person's editor had it.

    Raises:
        ValueError: the editor ended with an error.
        UsageError: there is none.
    """
    name = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, _EDITORS), "")
    if not name:
        raise UsageError("Expected an editor in $VISUAL or $EDITOR to edit a row with, got none; set EDITOR=nano, say.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            done = subprocess.run([*shlex.split(name), str(file)], check=False)
        except OSError as error:
            raise UsageError(f"Expected the editor '{name}' to start, got: {error.strerror}; set EDITOR.") from None
        if done.returncode:
            raise ValueError(f"the editor '{name}' ended with {done.returncode}")
        return file.read_text(encoding="utf-8", errors="replace")


def _row_of(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected valid JSON, got '{error.msg}' in line {error.lineno}") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected an object with the row's columns, got {type(values).__name__}")
    return values
