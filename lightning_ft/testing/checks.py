"""The contracts of tasks and metrics as clauses."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import TYPE_CHECKING, Any

from lightning_ft.testing.clauses import options_documented, require, run_clauses
from lightning_ft.types import Conversation, Example, Message, Preference, ScoredRow, Text, Unpaired

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_ft.metric import Metric
    from lightning_ft.task import Task


def trained_texts(example: Example) -> list[str]:
    """The texts of an example on which a loss falls."""
    if isinstance(example, Conversation):
        return [m.content or json.dumps(m.extra.get("tool_calls", "")) for m in example.messages if m.loss_weight > 0]
    if isinstance(example, Text):
        return [example.text]
    if isinstance(example, Preference):
        return [m.content for m in (*example.chosen, *example.rejected) if m.role == "assistant"]
    if isinstance(example, Unpaired):
        return [m.content for m in example.completion if m.role == "assistant"]
    return [example.label]


def examples_of(task: Task, row: Mapping[str, Any]) -> list[Example]:
    """The examples that a row of a file stands for."""
    return [task.format(part) for part in task.unfold(row)]


def task_options(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Its options are a frozen dataclass with documented fields, and it says which columns it reads."""
    options_documented(type(task))
    require("options", f"task {task.name}", bool(task.columns_help), "it needs `columns_help`, the columns it reads")
    require("options", f"task {task.name}", bool(rows), "the check needs at least one row that the task reads")


def task_columns(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """It matches the columns of its rows and recognizes what stands in them, and not a row without any that it reads."""
    for row in rows:
        found = task.matches(frozenset(row)) == task.automatic
        require("columns", f"task {task.name}", found, f"`matches` of columns {sorted(row)} is not what `automatic` says")
        require("columns", f"task {task.name}", task.recognizes(row), f"it does not recognize its own row {dict(row)}")
        for odd in ({}, dict.fromkeys(row), dict.fromkeys(row, 17)):
            try:
                task.recognizes(odd)
            except Exception as error:
                require("columns", f"task {task.name}", False, f"recognizes({odd}) raises {type(error).__name__}: {error}")
    foreign = frozenset({"zz_no_such_column"})
    require("columns", f"task {task.name}", not task.matches(foreign), f"it matches columns {sorted(foreign)}")


def task_example(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every row becomes an example, the same each time; the row itself stays as it is."""
    for row in rows:
        before = copy.deepcopy(dict(row))
        examples = examples_of(task, row)
        require("example", f"task {task.name}", bool(examples), f"unfold returned nothing for {dict(row)}")
        require("example", f"task {task.name}", examples_of(task, row) == examples, "another example comes the second time")
        require("example", f"task {task.name}", dict(row) == before, "unfold or format changed the row")
        for example in examples:
            kinds = " or ".join(kind.__name__ for kind in task.kinds())
            made = f"format returned a {type(example).__name__}, but `makes` says {kinds}"
            require("example", f"task {task.name}", isinstance(example, task.kinds()), made)
            if isinstance(example, Conversation):
                typed = all(isinstance(m, Message) for m in example.messages)
                require("example", f"task {task.name}", typed, "messages must be `Message` objects")


def task_supervised(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every example has text on which a loss falls."""
    for row in rows:
        for example in examples_of(task, row):
            texts = trained_texts(example)
            require("supervised", f"task {task.name}", any(t.strip() for t in texts), f"nothing is trained in row {dict(row)}")


def task_wrong_rows(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """A column of a wrong type or a missing one is refused with a `ValueError` that names the column."""
    for row in rows:
        refused = 0
        for column in row:
            without = {k: v for k, v in row.items() if k != column}
            for broken in ({**row, column: 17}, without):
                refused += _refused(task, broken, column)
        require("wrong rows", f"task {task.name}", refused > 0, f"whatever is wrong in {dict(row)}, it is taken")


def _refused(task: Task, broken: Mapping[str, Any], column: str) -> bool:
    """Whether a broken row is refused; any other error than a `ValueError` naming the column breaks the clause."""
    subject = f"task {task.name}"
    try:
        examples_of(task, broken)
    except ValueError as error:
        named = column in str(error) or (column not in broken and "column" in str(error))
        require("wrong rows", subject, named, f"the message for a wrong '{column}' does not name it: {error}")
        return True
    except Exception as error:
        require("wrong rows", subject, False, f"a wrong '{column}' gives {type(error).__name__} instead of ValueError: {error}")
    return False


TASK_CLAUSES: dict[str, Callable[[Task, Sequence[Mapping[str, Any]]], None]] = {
    "options": task_options,
    "columns": task_columns,
    "example": task_example,
    "supervised": task_supervised,
    "wrong rows": task_wrong_rows,
}


def check_task(task: Task | type[Task], rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Every clause of the task contract.

    Args:
        task: an instance, or a class that is taken with its defaults.
        rows: rows that the task reads; None: the class variable `samples` of the task.

    Raises:
        AssertionError: a clause is broken; the message names it.
    """
    made = task() if isinstance(task, type) else task
    run_clauses(TASK_CLAUSES, made, getattr(made, "samples", ()) if rows is None else rows)


def scored_rows(*, right: bool, pairs: bool = False) -> list[ScoredRow]:
    """Six conversations or pairs as an evaluation hands them out, all answers right (and certain) or all wrong."""
    rows = []
    for i in range(6):
        answer = f"the answer number {i} is {'blue' if i % 2 else 'green'}"
        asked, given, other = Message("user", f"question {i}"), Message("assistant", answer), Message("assistant", "zzz qqq")
        example = Preference((asked,), (given,), (other,)) if pairs else Conversation((asked, given))
        rows.append(
            ScoredRow(
                row=f"rows.jsonl:{i + 1}",
                example=example,
                nll=0.01 * (i + 1) if right else 30.0 + i,
                tokens=5 + i,
                correct=5 + i if right else 0,
                utf8_bytes=len(answer),
                words=5,
                split_words=0 if right else 5,
                prompt=f"question {i}",
                prediction=answer if right else "zzz qqq",
                references=(answer,),
                candidates={answer: -0.01, "zzz qqq": -30.0} if right else {answer: -30.0, "zzz qqq": -0.01},
                worse=(30.0 + i if right else 0.01 * (i + 1), 5 + i),
            )
        )
    return rows


def rows_for(metric: type[Metric], *, right: bool) -> list[ScoredRow]:
    """Six rows with the answers in the metric's `samples`, all right or all wrong; of a metric without any, `scored_rows`."""
    rows = []
    for i in range(6 if metric.samples else 0):
        meta = dict(metric.samples[i % len(metric.samples)])
        answers, reference = {kind: meta.pop(kind) for kind in ("right", "wrong")}, meta.pop("reference")
        example = Conversation((Message("user", f"question {i}"), Message("assistant", reference)), meta=meta)
        prediction = answers["right" if right else "wrong"]
        rows.append(
            ScoredRow(f"rows.jsonl:{i + 1}", example, prompt=f"question {i}", prediction=prediction, references=(reference,))
        )
    return rows or scored_rows(right=right, pairs=metric.reads == "pair")


def _prepared(metric: type[Metric], rows: Sequence[ScoredRow]) -> Metric:
    made = metric()
    made.prepare(rows)
    return made


def _value(metric: type[Metric], rows: Sequence[ScoredRow]) -> float:
    made = _prepared(metric, rows)
    made.update(rows)
    return float(made.compute())


def metric_declared(metric: type[Metric], right: Sequence[ScoredRow], wrong: Sequence[ScoredRow]) -> None:
    """It has a name, says what it reads, has a docstring, and is made without arguments."""
    name = getattr(metric, "name", None)
    require("declared", metric.__name__, isinstance(name, str) and name != "", "it needs a class variable `name`")
    kinds = ("tokens", "text", "candidates", "pair")
    require("declared", metric.__name__, metric.reads in kinds, f"`reads` must be one of {', '.join(kinds)}")
    require("declared", metric.__name__, "__doc__" in vars(metric) and bool(metric.__doc__), "it needs a docstring")


def metric_statistics(metric: type[Metric], right: Sequence[ScoredRow], wrong: Sequence[ScoredRow]) -> None:
    """Every row gives equally many finite numbers, and their sum finished is the value."""
    import torch

    subject = f"metric {metric.name}"
    made = _prepared(metric, [*right, *wrong])
    lengths = {len(made.statistics(row)) for row in (*right, *wrong)}
    require("statistics", subject, len(lengths) == 1, f"rows give different numbers of statistics: {sorted(lengths)}")
    made.update([*right, *wrong])
    table = made.table()
    expected = (len(right) + len(wrong), lengths.pop())
    require("statistics", subject, tuple(table.shape) == expected, f"the table is {tuple(table.shape)}, not {expected}")
    require("statistics", subject, bool(table.isfinite().all()), "a statistic is not finite")
    equal = torch.equal(made.finish(table.sum(0)), made.compute())
    require("statistics", subject, equal, "compute() is not finish() of the summed statistics")
    batched = made.finish(torch.stack([table.sum(0), table.sum(0)]))
    require("statistics", subject, tuple(batched.shape) == (2,), "finish() must take (..., K) to (...), for resampling")


def metric_splits(metric: type[Metric], right: Sequence[ScoredRow], wrong: Sequence[ScoredRow]) -> None:
    """Rows split over updates, over two objects (ranks), or through a pickle give the same value; reset empties it."""
    import torch

    subject = f"metric {metric.name}"
    rows = [*right, *wrong]
    whole, first, second = (_prepared(metric, rows) for _ in range(3))
    whole.update(rows)
    for row in rows[:5]:
        first.update([row])
    second.update(rows[5:])
    merged = torch.cat([first.table(), second.table()])
    require("splits", subject, torch.equal(merged, whole.table()), "the tables of two parts are not the table of the whole")
    again = pickle.loads(pickle.dumps(whole))
    require("splits", subject, torch.equal(again.compute(), whole.compute()), "a pickled metric has another value")
    whole.reset()
    require("splits", subject, len(whole.table()) == 0, "reset() leaves rows behind")


def metric_direction(metric: type[Metric], right: Sequence[ScoredRow], wrong: Sequence[ScoredRow]) -> None:
    """Right answers are better than wrong ones, mixed ones between them, where either can be; a share is 0 to 1."""
    subject = f"metric {metric.name}"
    good, bad, mixed = (_value(metric, rows) for rows in (right, wrong, [*right, *wrong]))
    require("direction", subject, all(map(math.isfinite, (good, bad, mixed))), f"values are not finite: {good}, {bad}, {mixed}")
    if metric.higher_is_better is not None:
        better = good > bad if metric.higher_is_better else good < bad
        require("direction", subject, better, f"right answers give {good}, wrong ones {bad}, `higher_is_better` says otherwise")
        require("direction", subject, min(good, bad) <= mixed <= max(good, bad), f"{mixed} is not between {good} and {bad}")
    if metric.percent:
        in_range = all(-1e-9 <= v <= 1 + 1e-9 for v in (good, bad, mixed))
        require("direction", subject, in_range, f"a share must be 0 to 1, not {good} and {bad}; tables multiply by 100")


METRIC_CLAUSES: dict[str, Callable[[type[Metric], Sequence[ScoredRow], Sequence[ScoredRow]], None]] = {
    "declared": metric_declared,
    "statistics": metric_statistics,
    "splits": metric_splits,
    "direction": metric_direction,
}


def check_metric(
    metric: type[Metric], right: Sequence[ScoredRow] | None = None, wrong: Sequence[ScoredRow] | None = None
) -> None:
    """Every clause of the metric contract.

    Args:
        metric: the class, made without arguments.
        right: rows (six or more) that deserve the best value; None: the right ones of `rows_for` the metric.
        wrong: rows that deserve a bad one; None: the wrong ones.

    Raises:
        AssertionError: a clause is broken; the message names it.
    """
    good = rows_for(metric, right=True) if right is None else right
    bad = rows_for(metric, right=False) if wrong is None else wrong
    require("direction", f"metric {metric.__name__}", len(good) > 0 and len(bad) > 0, "it needs right and wrong rows, got none")
    run_clauses(METRIC_CLAUSES, metric, good, bad)
