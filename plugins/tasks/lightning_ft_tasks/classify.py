"""Texts with their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.task import Task
from lightning_ft.types import Classified
from lightning_ft_tasks.instruct import first_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

LABELS = ("label", "category", "intent", "class")
"""Columns that may hold the class, first match wins."""


@dataclass(frozen=True)
class Classify(Task):
    """`{"text", "label"}`; a class is a text or a whole number. Further columns are kept in `meta`.

    The model learns to write the class, in words, as its answer to the text.
    """

    name: ClassVar[str] = "classify"
    precedence: ClassVar[int] = 15
    makes: ClassVar[type[Classified]] = Classified
    metrics: ClassVar[tuple[str, ...]] = ("exact_match",)
    columns_help: ClassVar[str] = "text, label (category, intent, class)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"text": "My card is gone.", "label": "lost_card"},
        {"text": "Where is my money?", "category": "balance", "id": 4},
        {"text": "Hello", "label": 2},
    )
    """Rows as the task reads them."""

    label_column: str | None = None
    """Column that holds the class; None: the first of label, category, intent, class."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a text and its class."""
        return "text" in columns and first_of(LABELS, columns) is not None

    def format(self, row: Mapping[str, Any]) -> Classified:
        """The text of a row and its class."""
        column = self.label_column or first_of(LABELS, row)
        if column is None or column not in row:
            raise ValueError(f"expected a column '{column or LABELS[0]}', got {', '.join(row) or 'none'}")
        label = row[column]
        if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
            raise ValueError(f"expected '{column}' to be the name or number of a class, got {label!r:.80}")
        return Classified(text_of(row, "text"), str(label), {k: v for k, v in row.items() if k not in {"text", column}})
