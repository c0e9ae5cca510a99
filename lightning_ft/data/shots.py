"""Few-shot prompts: training rows that a task shows before each row."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.rename import renamed
from lightning_ft.data.sources import expand, read_rows
from lightning_ft.data.split import content_hash, prompt_key
from lightning_ft.data.unfold import examples_of
from lightning_ft.errors import DataError
from lightning_ft.types import Conversation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lightning_ft.data.split import Split
    from lightning_ft.task import Task
    from lightning_ft.types import Example, Row

SHOTS = "shots"
"""The key under which `Task.format` gets the rows to show."""
POOL = 4096
"""Rows that shots are drawn from: those of the smallest hash, so that neither order nor number of the others matters."""


@dataclass(order=True)
class _Candidate:
    rank: int
    prompt: int = field(compare=False)
    number: int = field(compare=False)
    values: Mapping[str, Any] = field(compare=False)


class Shots:
    """Draws for each row `task.demonstrations` training rows, by seed and content: never the row itself, nor its prompt.

    Args:
        task: Says how many, and may name a file to take them from.
        seed: Another seed draws others.
        columns: As for `renamed`, for the rows of that file.
    """

    def __init__(self, task: Task, seed: int, columns: Mapping[str, str]) -> None:
        self.count, self.seed, self.columns = task.demonstrations, seed, columns
        self._heap: list[_Candidate] = []  # with negated ranks: the first is the one to drop
        self._pool: list[_Candidate] = []
        self._file = task.demonstration_file
        self._task = task

    def offer(self, row: Row, example: Example, number: int) -> None:
        """The first row that a possible training row stands for, its example, and the number of the row among all rows."""
        if self._file is None:
            self._push(row.values, example, number)

    def _push(self, values: Mapping[str, Any], example: Example, number: int) -> None:
        if isinstance(example, Conversation) and not _answers(example):
            return
        prompt = prompt_key(example)
        candidate = _Candidate(-content_hash(f"{self.seed}:{prompt}:{number}"), prompt, number, values)
        (heapq.heappush if len(self._heap) < POOL else heapq.heappushpop)(self._heap, candidate)

    def settle(self, splits: Sequence[Split]) -> None:
        """Keep the rows that train.

        Raises:
            DataError: there are too few of them to draw from.
        """
        if self._file is not None:
            for number, row in enumerate(_rows_of(self._file)):
                shown, example = self._example(renamed(row, self.columns))
                self._push(shown.values, example, number)
        self._pool = sorted(c for c in self._heap if self._file is not None or splits[c.number] == "train")
        prompts = len({candidate.prompt for candidate in self._pool})
        if prompts <= self.count:
            where = f"in '{self._file}'" if self._file else "among the training rows"
            raise DataError(
                f"Expected more than {self.count} rows with different prompts {where} for --task.shots {self.count}, got"
                f" {prompts}; take fewer shots, or name a file with --task.shots_from FILE."
            )

    def _example(self, row: Row) -> tuple[Row, Example]:
        """The first that a row of the file stands for; refuses one that cannot be shown."""
        try:
            return examples_of(self._task, row)[0]
        except ValueError as error:
            raise DataError(f"{row.id}: {error}; mend it, or name another file with --task.shots_from.") from None

    def before(self, row: Row, example: Example) -> dict[str, Any]:
        """The columns of a row whose example without shots is this one, with the rows to show under `SHOTS`."""
        own = prompt_key(example)
        draw = random.Random(f"{self.seed}:{own}:{row.line}:{row.part}")
        shown: dict[int, Mapping[str, Any]] = {}
        while len(shown) < self.count:
            candidate = draw.choice(self._pool)
            if candidate.prompt != own:
                shown.setdefault(candidate.prompt, candidate.values)
        return {**row.values, SHOTS: [dict(values) for values in shown.values()]}


def _answers(example: Conversation) -> bool:
    """Whether there is an answer to show."""
    last = example.messages[-1]
    return last.role == "assistant" and bool(last.content.strip()) and last.loss_weight > 0


def _rows_of(name: str) -> list[Row]:
    bad = BadRows("fail")
    rows = [row for path in expand([name]) for row in read_rows(path, bad)]
    bad.finish(len(rows))
    return rows


def files_of(task: Task | None) -> list[Path]:
    """The files that a task takes its shots from, beside those of the run."""
    return expand([task.demonstration_file]) if task is not None and task.demonstration_file else []
