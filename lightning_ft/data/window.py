"""A part of the rows of all training files, as a stream reads them: so many from a position on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.data.sources import read_rows
from lightning_ft.data.split import group_keys, prompt_key, split_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from lightning_ft.data.badrows import BadRows
    from lightning_ft.types import Example, Row


@dataclass(frozen=True, order=True)
class Position:
    """Where a reader of all files stands."""

    turn: int = 0
    """Times that all files have been read."""
    file: int = 0
    """Number of the file."""
    row: int = 0
    """Rows of it that have been read."""


class Window:
    """At most `rows` rows from `start` on; `end` is where the next window starts, once this one has been read.

    What cannot be read belongs to the window of the next row that can be, so that no problem is counted twice.

    Args:
        start: The first row.
        rows: How many there are at most.
        held_out: Hashes of the prompts and groups of rows that were held out, which must not train; None in the first window,
            whose rows are split.
    """

    def __init__(self, start: Position, rows: int, held_out: frozenset[int] | None = None) -> None:
        self.start, self.rows, self.held_out = start, rows, held_out
        self.end = Position(start.turn + 1)
        self.later = held_out is not None
        """Whether it comes after the first window."""
        self._left = rows
        self._file = -1

    def read(self, path: Path, bad: BadRows, check: Callable[[], None]) -> Iterator[Row]:
        """Those of the window's rows that are in the next file; `check` is called for every row, also before the window."""
        self._file += 1
        skipped = self.start.row if self._file == self.start.file else 0
        if self._file < self.start.file or not self._left:
            return
        bad.muted = skipped > 0
        try:
            for number, row in enumerate(read_rows(path, bad), start=1):
                check()
                if number == skipped:
                    bad.muted = False
                if number <= skipped:
                    continue
                self._left -= 1
                if not self._left:
                    self.end = Position(self.start.turn, self._file, number)
                yield row
                if not self._left:
                    return
        finally:
            bad.muted = False

    def must_not_train(self, values: Mapping[str, Any], examples: Iterable[Example]) -> bool:
        """Whether a row belongs to one that was held out, or says itself that it does not train."""
        if self.held_out is None:
            return False
        named = split_name(values.get("split")) in ("validation", "test")
        return named or not self.held_out.isdisjoint(keys_of(values, examples))


def keys_of(values: Mapping[str, Any], examples: Iterable[Example]) -> list[int]:
    """Hashes of all that holds a row of a file together with others: what its examples ask, and its groups."""
    return [*map(prompt_key, examples), *group_keys(values)]
