"""What metrics read of a row: the generated answer and the accepted ones, or an error that says what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_ft.types import ScoredRow


def answer_of(row: ScoredRow, metric: str) -> str:
    """The generated answer, which may be empty.

    Raises:
        ValueError: nothing was generated.
    """
    if row.prediction is None:
        raise ValueError(f"{row.row}: expected a generated answer for metric {metric}, got none")
    return row.prediction


def accepted(row: ScoredRow) -> tuple[str, ...]:
    """The accepted answers, one or more.

    Raises:
        ValueError: there is none.
    """
    if not row.references:
        raise ValueError(f"{row.row}: expected a reference, got none")
    return row.references
