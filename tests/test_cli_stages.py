"""What `validate`, `test` and `predict` take over from the run that they look at, and what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from tests.test_cli_flags import request_of, write

if TYPE_CHECKING:
    from pathlib import Path


def test_stages_take_over_the_config_of_the_run_they_look_at(tmp_path: Path) -> None:
    config = TrainingConfig(model="base", data=["a.jsonl"], seed=7, split=[0.6, 0.2, 0.2], output="elsewhere", max_steps=3)
    import yaml

    write(tmp_path, yaml.safe_dump(config.as_dict()), "config.yaml")
    write(tmp_path, "{}", "run.json")
    (tmp_path / "final_model").mkdir()
    for model in (tmp_path, tmp_path / "final_model"):
        request = request_of(str(model), "--seed", "8", stage="test")
        found = request.config()
        assert (found.model, found.data, found.split, found.seed, found.output) == (
            str(model),
            ["a.jsonl"],
            [0.6, 0.2, 0.2],
            8,
            None,
        )
    with pytest.raises(UsageError, match="Expected --data"):
        request_of(str(tmp_path), stage="fit")
    with pytest.raises(UsageError, match="Expected flags that `test` reads, got --batch_size, which is for `fit` alone"):
        request_of(str(tmp_path), "--batch_size", "1", stage="test")


def test_other_data_are_looked_at_without_the_files_of_the_run(tmp_path: Path) -> None:
    """Its test file would be the whole test, whatever rows are named; and its processes are those of another machine."""
    import yaml

    config = TrainingConfig(
        model="base", data=["a.jsonl"], test_data=["old.jsonl"], holdout_tasks=["sums"], devices="8", strategy="fsdp2"
    )
    write(tmp_path, yaml.safe_dump(config.as_dict()), "config.yaml")
    write(tmp_path, "{}", "run.json")
    same = request_of(str(tmp_path), stage="test").config()
    assert (same.data, same.test_data, same.holdout_tasks) == (["a.jsonl"], ["old.jsonl"], ["sums"])
    again = request_of(str(tmp_path), "--data", "./a.jsonl", stage="test").config()
    assert (again.test_data, again.holdout_tasks) == (["old.jsonl"], ["sums"]), "the same data by another name"
    other = request_of(str(tmp_path), "--data", "new.jsonl", stage="test").config()
    assert (other.data, other.test_data, other.holdout_tasks) == (["new.jsonl"], None, None)
    assert {(found.devices, found.strategy) for found in (same, other)} == {("auto", "auto")}
