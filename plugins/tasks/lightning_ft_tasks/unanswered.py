"""Rows that ask and bring no answer: nothing to train, but something to ask a model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COLUMN = "response"
"""Where an answer would stand in a row that has no column for it."""


def answered(
    format_row: Callable[[Mapping[str, Any]], Conversation], row: Mapping[str, Any], column: str | None
) -> Conversation:
    """The conversation of a row whose answer may be missing: then its last turn is an empty one that no loss falls on.

    Args:
        format_row: Makes the conversation of a row with an answer in its last turn.
        row: The row.
        column: The column of the answer; None: there is none.

    Raises:
        ValueError: as `format_row`; a blank answer is refused as there.
    """
    name = column or COLUMN
    if row.get(name) is not None:
        return format_row(row)
    made = format_row({**row, name: "-"})
    *before, last = made.messages
    return dataclasses.replace(made, messages=(*before, Message(last.role, "", weight=0.0)))
