"""Files as `fit` reads them: rows, the task that their columns belong to, and the examples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.values import MismatchError, read_yaml_text
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import columns_of, detect_task
from lightning_ft.data.rename import check_columns, renamed
from lightning_ft.data.sources import expand, read_rows
from lightning_ft.errors import DataError, UsageError
from lightning_ft.registry import registry
from lightning_ft.run.choices import instance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning_ft.task import Task
    from lightning_ft.types import Example, Row

DETECTED_FROM = 200
"""Rows whose columns decide the task, as in `fit`."""


@dataclass(frozen=True)
class Reading:
    """The rows of the named files."""

    rows: Sequence[Row]
    task: Task

    def examples(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Example]]:
        """Each row, or each of the rows that it stands for, with its example.

        Raises:
            DataError: the task refuses a row; the message begins with its `file:line`.
        """
        for row in rows:
            try:
                parts = self.task.unfold(row.values)
                for number, values in enumerate(parts, 1):
                    part = 0 if len(parts) == 1 else number
                    yield dataclasses.replace(row, values=values, part=part), self.task.format(values)
            except UsageError:
                raise
            except ValueError as error:
                raise DataError(f"{row.id}: {error}.") from error


def read(names: Sequence[str], task: str | None, columns: Mapping[str, str]) -> Reading:
    """The rows of files, globs and folders.

    Args:
        names: as after `fit --data`.
        task: a name, `{name: ..., option: ...}`, or None to let the columns decide.
        columns: as `fit --columns`.

    Raises:
        DataError: rows cannot be read, or belong to no task.
        UsageError: an unknown task or option.
    """
    bad = BadRows("fail")
    rows = [renamed(row, columns) for path in expand(names) for row in read_rows(path, bad)]
    bad.finish(len(rows) + bad.count)
    check_columns(rows, columns)
    if task is None or task == "auto":
        entry = detect_task(columns_of(rows[:DETECTED_FROM]), registry().tasks, rows[0].source)
        return Reading(rows, entry.cls())
    return Reading(rows, chosen(task))


def chosen(text: str) -> Task:
    """The task that a text names.

    Raises:
        UsageError: an unknown name or option.
    """
    value: Any = text
    if text.startswith("{"):
        try:
            value = read_yaml_text(text)
        except MismatchError as error:
            raise UsageError(f"Expected --task to be a name or a mapping, {error}; got {text}.") from error
    made: Task = instance("task", value, registry())
    return made


def tokenizer_of(model: str, max_length: int | None) -> tuple[Any, int]:
    """A model's tokenizer and the limit of its rows, as `fit` has it."""
    from lightning_ft.backbone import BackboneSpec, load_config, load_tokenizer
    from lightning_ft.loading import locate

    location = locate(model)
    tokenizer = load_tokenizer(location.tokenizer, revision=location.revision)
    config = load_config(BackboneSpec(model=location.base, revision=location.revision))
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 2048
    return tokenizer, max_length or min(2048, positions)


def split_columns(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words without `--columns.NAME COLUMN`, and these as a mapping.

    Raises:
        UsageError: a name without its column.
    """
    rest, columns = [], {}
    words = iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if not flag.startswith("--columns."):
            rest.append(word)
            continue
        column = value or next(words, "")
        if not column or column.startswith("--"):
            raise UsageError(f"Expected a value after {flag}; got none.")
        columns[flag.removeprefix("--columns.")] = column
    return rest, columns
