from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_ft.config import NOT_NEGATIVE, POSITIVE, TrainingConfig, describe, option_names
from lightning_ft.errors import UsageError


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig(**{"model": "m", "data": ["a.jsonl"], **values})


def message(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        config(**values)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_what_must_be_positive(name: str, value: int) -> None:
    assert message(**{name: value}) == f"Expected --{name} to be above 0; got {value}."


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_what_must_not_be_negative(name: str) -> None:
    assert message(**{name: -1}) == f"Expected --{name} to be at least 0; got -1."
    config(**{name: 0})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epochs": math.inf}, "Expected --epochs to be a finite number; got inf."),
        ({"learning_rate": math.nan}, "Expected --learning_rate to be a finite number; got nan."),
        ({"epochs": "3"}, "Expected --epochs to be a finite number; got '3'."),
        ({"epochs": True}, "Expected --epochs to be a finite number; got True."),
        ({"batch_size": 2.5}, "Expected --batch_size to be a whole number; got 2.5."),
        ({"max_steps": False}, "Expected --max_steps to be a whole number; got False."),
        ({"seed": 2**32}, "Expected --seed to be at most 4294967295; got 4294967296."),
        ({"preflight": "no"}, "Expected --preflight to be true or false; got 'no'."),
        ({"template": None}, "Expected --template to be text; got None."),
        ({"trainer": ["x"]}, "Expected --trainer to be a mapping; got ['x']."),
        ({"devices": 1.5}, "Expected --devices to be a whole number or text; got 1.5."),
        ({"data": {"a": 1}}, "Expected --data to be a list, each text; got {'a': 1}."),
        ({"data": ["a", 1]}, "Expected --data to be a list, each text; got ['a', 1]."),
        ({"data": []}, "Expected --data to name at least one file; got none."),
        ({"val_data": [""]}, "Expected --val_data to be names that are not empty; got ['']."),
        ({"precision": "fp61"}, "Expected --precision to be one of auto, fp32, bf16, fp16; got 'fp61'. Did you mean 'fp16'?"),
        ({"packing": True}, "Expected --packing to be one of auto, on, off; got 'True'."),
        ({"name": "a/b"}, "Expected --name to be the name of a folder under runs/; got 'a/b': use --output for a path."),
        (
            {"retention": "my.jsonl", "verdict_rows": 0},
            "Expected --verdict_rows above 0 with --retention, which nothing else reads; got 0.",
        ),
        ({"trust_remote_code": True}, "Expected --revision with --trust_remote_code, to pin the code that runs; got none."),
    ],
)
def test_a_wrong_value_is_one_sentence(values: dict[str, Any], expected: str) -> None:
    assert message(**values) == expected


@pytest.mark.parametrize("split", [[1.0], [0.5, 0.4], [1.2, -0.2], [0.25] * 4, [math.nan, 0.5, 0.5], "80/20", [True, 0]])
def test_shares_that_are_none(split: Any) -> None:
    assert message(split=split).startswith("Expected --split to be ")


def test_paths_and_single_values_become_lists_of_text() -> None:
    got = config(model=Path("m"), data=Path("a.jsonl"), val_data=("b.csv", Path("c.csv")), metrics="f1", devices=[0, 2])
    assert (got.model, got.data, got.val_data, got.metrics) == ("m", ["a.jsonl"], ["b.csv", "c.csv"], ["f1"])
    assert got.devices == "0,2,"
    yaml.safe_dump(got.as_dict())


@dataclass(frozen=True)
class Trick:
    rank: int = 4
    name = "trick"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Trick(8), {"name": "trick", "rank": 8}),
        ("lora", "lora"),
        (None, None),
        ({"name": "x", "alpha": 2}, {"name": "x", "alpha": 2}),
    ],
)
def test_describe(value: Any, expected: Any) -> None:
    assert describe(value) == expected


def test_through_yaml_and_back() -> None:
    given = config(
        method=Trick(8), task={"name": "chat", "system": "Be kind."}, packing="on", split=[0.5, 0.5], epochs=0.5,
        learning_rate=1e-5, max_steps=7, trainer={"limit_train_batches": 0.5}, metrics=["f1", "on"], name="\u00fcber",
    )  # fmt: skip
    text = yaml.safe_dump(given.as_dict(), sort_keys=False, allow_unicode=True)
    again = TrainingConfig.from_dict(yaml.safe_load(text))
    assert again.as_dict() == given.as_dict()
    assert again.method == {"name": "trick", "rank": 8}
    assert (again.packing, again.learning_rate, again.trainer) == ("on", 1e-5, {"limit_train_batches": 0.5})
    assert tuple(given.as_dict()) == option_names() == tuple(f.name for f in fields(TrainingConfig))


def test_objects_for_the_trainer_are_written_as_text() -> None:
    given = config(trainer={"callbacks": [Trick()], "limit_train_batches": 0.5})
    written = yaml.safe_load(yaml.safe_dump(given.as_dict()))["trainer"]
    assert written == {"callbacks": [f"<{Trick.__module__}.Trick from Python>"], "limit_train_batches": 0.5}
    assert given.as_dict() == config(trainer={"callbacks": [Trick()], "limit_train_batches": 0.5}).as_dict()


def test_as_dict_is_a_copy() -> None:
    given = config(trainer={"a": [1]})
    given.as_dict()["trainer"]["a"].append(2)
    given.as_dict()["data"].append("b")
    assert (given.trainer, given.data) == ({"a": [1]}, ["a.jsonl"])


def test_from_dict_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UsageError, match=r"got 'learning_rat'\. Did you mean 'learning_rate'\?$"):
        TrainingConfig.from_dict({"model": "m", "data": ["x"], "learning_rat": 1})
    for values in ({"data": ["x"]}, {"model": "", "data": ["x"]}):
        with pytest.raises(UsageError, match=r"^Expected --model, got nothing"):
            TrainingConfig.from_dict(values)
    with pytest.raises(UsageError, match=r"^Expected --data, got nothing"):
        TrainingConfig.from_dict({"model": "m"})
