"""Which task a file's columns belong to (`--task auto`)."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from lightning_ft.errors import DataError, PluginError, UsageError, did_you_mean
from lightning_ft.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lightning_ft.registry import Entry, Table
    from lightning_ft.types import Example, Row

DETECTED_FROM = 200
"""Rows whose columns and contents decide the task."""


def task_of(rows: Sequence[Row], tasks: Table, kinds: tuple[type[Example], ...] = ()) -> Task:
    """The task of rows, with its defaults; arguments and errors as of `detect_task`."""
    found: Task = detect_task(rows, tasks, kinds).cls()
    return found


def columns_of(rows: Iterable[Row]) -> frozenset[str]:
    """Columns that at least half of the rows fill.

    So a single row that lacks one is found with its line when it is formatted, rather than turning the whole file into
    another task.
    """
    filled: Counter[str] = Counter()
    total = 0
    for row in rows:
        total += 1
        filled.update(key for key, value in row.values.items() if value is not None)
    return frozenset(key for key, count in filled.items() if 2 * count >= total)


def detect_task(rows: Sequence[Row], tasks: Table, kinds: tuple[type[Example], ...] = ()) -> Entry:
    """The task with the highest precedence among those that read the columns, and what stands in them.

    Those whose examples are of `kinds` go first: a file of preference pairs that also has a column for the answer is one
    of instructions to an objective that knows no pairs.

    Args:
        rows: rows as they were read, of which the first `DETECTED_FROM` are looked at.
        tasks: all registered tasks.
        kinds: example types that the objective trains on; empty: any.

    Raises:
        UsageError: two tasks of equal precedence match.
        DataError: none matches.
        PluginError: a task failed to say whether it reads the rows.
    """
    rows = rows[:DETECTED_FROM]
    source, columns = rows[0].source, columns_of(rows)
    matching = [entry for name in tasks if _matches(entry := tasks[name], columns, rows)]
    if any(row.section for row in rows) and (lost := [e for e in matching if by_content(e.cls)]):
        raise DataError(
            f"{source}: expected raw text, got what task {lost[0].name} reads, in pieces that may be cut anywhere; put each"
            " into a row of a .jsonl file, or name the task with --task to train all of the text."
        )
    matching = [entry for entry in matching if all(issubclass(made, kinds) for made in entry.cls.kinds())] or matching
    found = ", ".join(sorted(columns)) or "none"
    if not matching:
        reads = "; ".join(f"{entry.name}: {entry.cls.columns_help}" for entry in map(tasks.__getitem__, tasks))
        raise DataError(
            f"{source}: expected the columns of a task ({reads}), got the columns {found};{_rename(columns, tasks)} rename"
            " the columns, or name the task with --task."
        )
    best = max(entry.cls.precedence for entry in matching)
    first, *others = (entry for entry in matching if entry.cls.precedence == best)
    if others:
        raise UsageError(
            f"{source}: expected one task for the columns {found}, got {first.name} (plugin {first.plugin}) and"
            f" {others[0].name} (plugin {others[0].plugin}) of equal precedence; type --task {first.name} or"
            f" --task {others[0].name}."
        )
    return first


def by_content(cls: type[Task]) -> bool:
    """Whether a task looks at what stands in a column, as it reads a layout within it."""
    return any("recognizes" in vars(base) for base in cls.__mro__ if base is not Task)


def _matches(entry: Entry, columns: frozenset[str], rows: Sequence[Row]) -> bool:
    """Whether the columns are the task's, and at least half of the rows look like it where it looks at them."""
    try:
        if not entry.cls.matches(columns):
            return False
        return not by_content(entry.cls) or 2 * sum(bool(entry.cls.recognizes(row.values)) for row in rows) >= len(rows)
    except Exception as error:
        raise PluginError(
            f"Expected task '{entry.name}' of plugin '{entry.plugin}' to say whether it reads rows with the columns"
            f" {', '.join(sorted(columns))}, got {type(error).__name__}: {error}; name the task with --task, or set"
            f" LIGHTNING_FT_DISABLE_PLUGINS={entry.plugin}."
        ) from error


def _rename(columns: frozenset[str], tasks: Table) -> str:
    """A hint for the first column that looks like a misspelt one of a task."""
    known = {word for name in tasks for word in re.findall(r"\w{4,}", tasks[name].cls.columns_help)} - columns
    for column in sorted(columns):
        hint = did_you_mean(column, known)
        if hint:
            return f" for '{column}', did you mean {hint.removeprefix(' Did you mean ').removesuffix('?')}?"
    return ""
