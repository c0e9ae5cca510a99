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


def check_columns(there: set[str], columns: Mapping[str, str], source: str) -> None:
    """Refuse a name whose column no row has: as a rule it is misspelt.

    Args:
        there: the columns of all rows, renamed.
        columns: as for `renamed`.
        source: the first file, for the message.

    Raises:
        DataError: names the column, with a suggestion.
    """
    for name, column in columns.items():
        if name not in there:
            raise DataError(
                f"{source}: expected the column '{column}' of --columns.{name}, got the columns"
                f" {', '.join(sorted(there))}.{did_you_mean(column, there)}"
            )
