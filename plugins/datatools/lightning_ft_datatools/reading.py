"""Files as `fit` reads them: rows, the task that their columns belong to, and the examples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.cli.parser import choice_of
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import task_of
from lightning_ft.data.rename import Renaming
from lightning_ft.data.sources import check_unchanged, expand, read_rows, splits_by_name, stamp
from lightning_ft.data.split import split_name
from lightning_ft.data.unfold import examples_of
from lightning_ft.errors import DataError, UsageError
from lightning_ft.registry import registry
from lightning_ft.run.choices import instance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning_ft.run.texts import Texts
    from lightning_ft.task import Task
    from lightning_ft.types import Example, Row

    Names = str | Path | Sequence[str | Path]
    """Files, globs and folders as a Python caller names them: one or several."""


@dataclass(frozen=True)
class Reading:
    """The rows of the named files."""

    rows: Sequence[Row]
    task: Task
    columns: Mapping[str, str]
    """New names of the files' columns, as of `fit --columns`."""
    named: Mapping[str, str]
    """The split of each file that is named after one."""

    def examples(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Example]]:
        """Each row, or each of the rows that it stands for, with its example.

        Raises:
            DataError: the task refuses a row; the message begins with its `file:line`.
        """
        for row in rows:
            try:
                yield from examples_of(self.task, row)
            except UsageError:
                raise
            except ValueError as error:
                raise DataError(f"{row.id}: {error}.") from error


def read(names: Names, task: str | None, columns: Mapping[str, str]) -> Reading:
    """The rows of files, globs and folders.

    Args:
        names: as after `fit --data`.
        task: a name, `{name: ..., option: ...}`, or None to let the columns decide.
        columns: as `fit --columns`.

    Raises:
        DataError: rows cannot be read, or belong to no task.
        UsageError: an unknown task or option.
    """
    names = listed(names)
    bad = BadRows("fail", skip_by="`data check --fix OUT`")
    renaming = Renaming(columns)
    files = expand(names)
    rows = [renaming(row) for path in files for row in whole_rows(path, bad)]
    bad.finish(len(rows) + bad.count)
    renaming.check(names[0])
    named = {str(path): split for path, split in splits_by_name(files).items()}
    rows = with_splits(rows, named)
    return Reading(rows, chosen(task, rows), columns, named)


def with_splits(rows: Sequence[Row], named: Mapping[str, str]) -> list[Row]:
    """The rows with the split that their file is named after as a column, as it decides in `fit`: rows leave their files.

    Args:
        rows: of any files.
        named: the split of each file that is named after one.
    """
    return [
        dataclasses.replace(row, values={**row.values, "split": named[row.source]})
        if row.source in named and split_name(row.values.get("split")) != named[row.source]
        else row
        for row in rows
    ]


def listed(names: Names) -> list[str]:
    """Files that a Python caller named, one or several, as the command line has them."""
    return [str(names)] if isinstance(names, (str, Path)) else [str(name) for name in names]


def whole_rows(path: Path, bad: BadRows) -> list[Row]:
    """The rows of a file that stays as it is meanwhile.

    Raises:
        DataError: it was written while it was read.
    """
    before = stamp(path)
    rows = list(read_rows(path, bad))
    check_unchanged(path, before)
    return rows


def chosen(text: str | None, rows: Sequence[Row]) -> Task:
    """The task that a text names, or that the columns of the rows decide.

    Raises:
        DataError: the columns belong to no task.
        UsageError: an unknown name or option.
    """
    if text is None or text == "auto":
        return task_of(rows, registry().tasks)
    made: Task = instance("task", choice_of(text, "--task"), registry())
    return made


def texts_of(model: str, template: str, max_length: int | None) -> Texts:
    """What makes tokens of rows for a model, as `fit` has it; arguments as its options."""
    from lightning_ft.backbone import BackboneSpec, load_config, load_tokenizer, positions_of, read_json
    from lightning_ft.loading import ADAPTER, locate
    from lightning_ft.run.texts import Texts

    location = locate(model)
    tokenizer = load_tokenizer(location.tokenizer, revision=location.revision)
    config = load_config(BackboneSpec(model=location.base, revision=location.revision))
    taken = read_json(location.adapter / ADAPTER).get("num_virtual_tokens") if location.adapter else None
    return Texts.of(tokenizer, template, max_length, positions_of(config, taken or 0))
