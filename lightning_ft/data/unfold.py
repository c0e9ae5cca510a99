"""From a row to the examples that it stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_ft.data.detect import by_content

if TYPE_CHECKING:
    from lightning_ft.task import Task
    from lightning_ft.types import Example, Row


def examples_of(task: Task, row: Row) -> list[tuple[Row, Example]]:
    """Each of the rows that a row stands for (as a rule itself) with its example.

    Raises:
        ValueError: the task refuses the row; see `Task.format`.
    """
    if row.section and by_content(type(task)):
        raise ValueError("expected a row for each of what the task reads, got a piece of a text that may be cut anywhere")
    parts = task.unfold(row.values)
    alone = len(parts) == 1
    return [
        (row if values is row.values else replace(row, values=values, part=0 if alone else number), task.format(values))
        for number, values in enumerate(parts, 1)
    ]
