"""Presets of the tasks, and what every task does with a column that says which task a row is of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks import register_tasks

from lightning_ft.cli.yamlfile import find_config, presets
from lightning_ft.config import TrainingConfig
from lightning_ft.registry import registry

if TYPE_CHECKING:
    from lightning_ft.task import Task

TASKS = {cls.name: cls for cls in register_tasks()}
OWN = ("chat", "classify", "code", "constrained", "domain", "instruct", "reasoning", "safety")
"""Tasks that a user names; files of the others say what they are, or need options of their own."""


@pytest.mark.parametrize("name", OWN)
def test_a_task_has_its_preset(name: str) -> None:
    path = presets()[name]
    assert path.parent.parent.name == "lightning_ft_tasks"
    values = dict(find_config(name).values)
    assert values["task"] == name
    assert values["max_new_tokens"] > 0
    config = TrainingConfig.from_dict(values | {"model": "embedded", "data": ["rows.jsonl"]})
    assert all(getattr(config, key) == value for key, value in values.items())
    assert all("  # " in line for line in path.read_text(encoding="utf-8").splitlines()[1:]), "each key has its reason"


def test_every_preset_of_the_package_is_one_of_them() -> None:
    assert {name for name, path in presets().items() if path.parent.parent.name == "lightning_ft_tasks"} == set(OWN)


@pytest.mark.parametrize("cls", TASKS.values(), ids=list(TASKS))
def test_a_column_task_stays_with_the_row(cls: type[Task]) -> None:
    task = cls()
    for row in cls.samples:
        marked: dict[str, Any] = {**row, "task": "sums"}
        plain, found = ([task.format(part) for part in task.unfold(values)] for values in (row, marked))
        assert all(example.meta["task"] == "sums" for example in found)
        if "task" not in row:
            bare = [dataclasses.replace(e, meta={k: v for k, v in e.meta.items() if k != "task"}) for e in found]
            assert bare == plain, "and changes nothing that the model sees"


def test_every_task_names_registered_metrics() -> None:
    for cls in TASKS.values():
        assert [metric for metric in cls.metrics if metric not in registry().metrics] == []
