"""Rows of fruits and colours, and the metric that judges the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.metric import RowMetric
from lightning_ft.task import Task
from lightning_ft.types import Conversation, Message, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Fruit(Task):
    """A fruit, and which colour it has."""

    name = "fruit"
    precedence = 20
    metrics = ("colour_named",)
    columns_help = "fruit, colour"
    samples = ({"fruit": "eggplant", "colour": "purple"},)

    question: str = "Which colour is the {fruit}?"
    """What the user asks; {fruit} stands for the column."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with both columns."""
        return columns >= {"fruit", "colour"}

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """One question, one answer."""
        for column in ("fruit", "colour"):
            if not isinstance(row.get(column), str):
                raise ValueError(f"expected a column '{column}' with text, got {row.get(column)!r}")
        question = Message("user", self.question.format(fruit=row["fruit"]))
        return Conversation((question, Message("assistant", row["colour"])))


class ColourNamed(RowMetric):
    """Share of answers in which the right colour occurs."""

    name = "colour_named"
    percent = True

    def score(self, row: ScoredRow) -> float:
        """1 if a reference is part of the answer."""
        return float(any(reference in (row.prediction or "") for reference in row.references))
