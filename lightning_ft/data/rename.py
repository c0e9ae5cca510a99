"""Columns of the user's files under the names that a task reads (`--columns.prompt question`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lightning_ft.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.types import Row


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with each of `columns` under its new name, in place of a column that had it; what a row lacks stays lacking.

    Args:
        row: as it was read.
        columns: new name to the file's column, or to several with `|` between them, of which the first that the row has
            is taken. Names may be exchanged.
    """
    there = {name: column for name, column in ((name, _there(row, wanted)) for name, wanted in columns.items()) if column}
    if not there:
        return row
    moved = set(there.values())
    values = {column: value for column, value in row.values.items() if column not in moved}
    return dataclasses.replace(row, values={**values, **{name: row.values[column] for name, column in there.items()}})


def _there(row: Row, wanted: str) -> str | None:
    return next((column for column in wanted.split("|") if row.values.get(column) is not None), None)


class Renaming:
    """`renamed` for the rows of a data set, which remembers what their columns were called.

    Args:
        columns: as for `renamed`.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.met: set[str] = set()
        """The columns of all rows, as the files have them."""

    def __call__(self, row: Row) -> Row:
        """The row under its new names."""
        self.met.update(row.values)
        return renamed(row, self.columns) if self.columns else row

    def check(self, source: str) -> None:
        """Refuse a column that no row had: as a rule it is misspelt.

        Args:
            source: the first file, for the message.

        Raises:
            DataError: names the column, with a suggestion.
        """
        for name, column in self.columns.items():
            if self.met.isdisjoint(column.split("|")):
                raise DataError(
                    f"{source}: expected the column '{column}' of --columns.{name}, got the columns"
                    f" {', '.join(sorted(map(str, self.met)))}.{did_you_mean(column, self.met)}"
                )
