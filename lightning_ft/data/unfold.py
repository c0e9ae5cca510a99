"""From a row to the examples that it stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_ft.task import Task
    from lightning_ft.types import Example, Row


def examples_of(task: Task, row: Row) -> list[tuple[Row, Example]]:
    """Each of the rows that a row stands for (as a rule itself) with its example.

    Raises:
        ValueError: the task refuses the row; see `Task.format`.
    """
    parts = task.unfold(row.values)
    alone = len(parts) == 1
    return [
        (row if values is row.values else replace(row, values=values, part=0 if alone else number), task.format(values))
        for number, values in enumerate(parts, 1)
    ]
