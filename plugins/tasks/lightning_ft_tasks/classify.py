"""Texts with their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.task import Task
from lightning_ft.types import Classified
from lightning_ft_tasks.instruct import first_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import Example

LABELS = ("label", "category", "intent", "class")
"""Columns that may hold the class, first match wins."""


@dataclass(frozen=True)
class Classify(Task):
    """`{"text", "label"}`; a class is a text or a whole number. Further columns are kept in `meta`.

    The model learns to write the class, in words, as its answer to the text. It is judged twice: by what it writes, and by
    which of the classes it holds to be the most likely answer.
    """

    name: ClassVar[str] = "classify"
    precedence: ClassVar[int] = 15
    makes: ClassVar[type[Classified]] = Classified
    metrics: ClassVar[tuple[str, ...]] = (
        "accuracy", "macro_precision", "macro_recall", "macro_f1", "mcc", "choice_accuracy", "choice_macro_f1", "choice_mcc",
        "calibration_error",
    )  # fmt: skip
    columns_help: ClassVar[str] = "text, label (category, intent, class)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"text": "My card is gone.", "label": "lost_card"},
        {"text": "Where is my money?", "category": "balance", "id": 4},
        {"text": "Hello", "label": 2},
    )
    """Rows as the task reads them."""

    label_column: str | None = None
    """Column that holds the class; None: the first of label, category, intent, class."""
    labels: tuple[str, ...] = ()
    """All classes there are, among which the likeliest is chosen where answers are judged; none: those of held-out rows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(str(label).strip() for label in self.labels))
        if len(set(self.labels)) < len(self.labels) or "" in self.labels or len(self.labels) == 1:
            raise UsageError(f"Expected --task.labels to be two or more different names; got {', '.join(self.labels)}.")

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a text and its class."""
        return "text" in columns and first_of(LABELS, columns) is not None

    def candidates(self, examples: Sequence[Example]) -> Sequence[str]:
        """The option `labels`, else the classes of the rows, by name."""
        return self.labels or sorted({one.label for one in examples if isinstance(one, Classified)})

    def format(self, row: Mapping[str, Any]) -> Classified:
        """The text of a row and its class."""
        column = self.label_column or first_of(LABELS, row)
        if column is None or column not in row:
            raise ValueError(f"expected a column '{column or LABELS[0]}', got {', '.join(row) or 'none'}")
        label = row[column]
        if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
            raise ValueError(f"expected '{column}' to be the name or number of a class, got {label!r:.80}")
        if self.labels and str(label).strip() not in self.labels:
            raise ValueError(f"expected '{column}' to be one of --task.labels, got {label!r:.80}")
        return Classified(text_of(row, "text"), str(label).strip(), {k: v for k, v in row.items() if k not in {"text", column}})
