"""What a run knows of its rows, for other files that its model is evaluated on."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import DETECTED_FROM
from lightning_ft.data.rename import renamed
from lightning_ft.data.sources import expand, read_rows
from lightning_ft.data.unfold import examples_of
from lightning_ft.errors import DataError, UsageError
from lightning_ft.registry import registry
from lightning_ft.run.choices import instance
from lightning_ft.run.folder import options_of, record_of, run_around

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.task import Task
    from lightning_ft.types import Row


def reads_of(models: Sequence[str], data: Sequence[str], columns: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Task and columns of the first of some models that comes from a run which reads the rows.

    A model is scored on the texts that it was trained on; by the columns alone a task with its own template or options would
    never be found again.

    Args:
        models: As for `evaluate`.
        data: Files, globs or folders.
        columns: What the user renames; empty: as the run does.

    Returns:
        The options `task` and `columns`, none where no run's task reads at least half of the first rows; and a sentence that
        says what was found, empty where no model is of a run.
    """
    runs = [run for run in map(run_around, models) if run is not None]
    if not runs:
        return {}, ""
    try:
        rows = list(itertools.islice(read_rows(expand(list(data))[0], BadRows("skip")), DETECTED_FROM))
    except DataError:  # whoever reads all rows says it better
        return {}, ""
    said = ""
    for run in runs:
        try:
            began = options_of(run)
            task = instance("task", began.get("task"), registry())
        except UsageError as error:
            said = f"by the columns, as the task of run '{run}' is not there ({error})"
            continue
        its = {name: wanted for name, wanted in (began.get("columns") or {}).items() if _there(rows, wanted)}
        renaming = dict(columns) or its
        if 2 * sum(_reads(task, renamed(row, renaming)) for row in rows) >= len(rows):
            return {"task": task, "columns": renaming}, f"{task.name}, as in run '{run}'"
        said = f"by the columns, as the task {task.name} of run '{run}' does not read them"
    return {}, said


def trained_on(model: str, hashes: Mapping[str, str]) -> list[str]:
    """Those of some files of which the run of a model trained on rows, by their contents.

    Args:
        model: As for `evaluate`.
        hashes: SHA-256 of each file's content, by its name.
    """
    run = run_around(model)
    if run is None:
        return []
    try:
        sources = json.loads((run / layout.LEDGER).read_text(encoding="utf-8"))["sources"]
        had = record_of(run)["data"]["files"].items()
        known = {content for name, content in had if sources[name]["train"]}
    except (OSError, ValueError, KeyError, TypeError):  # not to be known any more
        return []
    return [name for name, content in hashes.items() if content in known]


def divided_otherwise(model: str, hashes: Mapping[str, str], division: str) -> bool:
    """Whether rows of files that the run of a model had are divided into other splits than there.

    Args:
        model: As for `evaluate`.
        hashes: SHA-256 of each file's content, by its name.
        division: Of the rows, as `Prepared` has it.
    """
    run = run_around(model)
    before = None if run is None else (record_of(run).get("data") or {}).get("division")
    return before not in (None, division) and bool(trained_on(model, hashes))


def _there(rows: Sequence[Row], wanted: str) -> bool:
    return any(row.values.get(column) is not None for row in rows for column in wanted.split("|"))


def _reads(task: Task, row: Row) -> bool:
    try:
        examples_of(task, row)
    except Exception:  # a plugin's own; why does not matter
        return False
    return True
