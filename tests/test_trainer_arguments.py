from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import CSVLogger

from lightning_ft.errors import UsageError
from lightning_ft.run.trainer_arguments import check_trainer_names, trainer_arguments

if TYPE_CHECKING:
    from pathlib import Path

STOPPING = "lightning.pytorch.callbacks.EarlyStopping"


def message(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        trainer_arguments(values)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_nothing_stays_nothing() -> None:
    assert trainer_arguments({}) == {}


def test_only_what_was_given_comes_back_and_typed() -> None:
    assert trainer_arguments({"limit_val_batches": "0.5", "deterministic": True}) == {
        "limit_val_batches": 0.5,
        "deterministic": True,
    }


def test_callbacks_become_objects() -> None:
    given: list[dict[str, Any]] = [
        {"class_path": STOPPING, "init_args": {"monitor": "val_loss", "patience": 7}},
        {"class_path": "Timer"},
    ]
    stopping, timer = trainer_arguments({"callbacks": given})["callbacks"]
    assert type(stopping) is EarlyStopping
    assert (stopping.monitor, stopping.patience) == ("val_loss", 7)
    assert type(timer) is Timer
    assert given[0]["init_args"] == {"monitor": "val_loss", "patience": 7}, "the config is left as it was"


def test_one_callback_and_none() -> None:
    (timer,) = trainer_arguments({"callbacks": {"class_path": "Timer"}})["callbacks"]
    assert type(timer) is Timer
    assert trainer_arguments({"callbacks": None}) == {"callbacks": []}


def test_objects_from_python_are_passed_on(tmp_path: Path) -> None:
    timer, logger = Timer(), CSVLogger(tmp_path)
    made = trainer_arguments({"callbacks": timer, "logger": logger, "max_time": "00:01:00:00"})
    assert made["callbacks"] == [timer]
    assert made["logger"] is logger
    assert made["max_time"] == "00:01:00:00"


@pytest.mark.parametrize(
    "values",
    [
        {"callbacks": [{"class_path": "evil.Thing"}]},
        {"callbacks": "evil.Thing"},
        {"logger": {"class_path": "evil.Thing", "init_args": {}}},
        {"plugins": [{"class_path": STOPPING, "init_args": {"monitor": {"class_path": "evil.Thing"}}}]},
    ],
)
def test_foreign_code_is_refused_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'done')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert message(**values).startswith("Expected a class of lightning_ft, torch.optim, lightning")
    assert "evil" not in sys.modules
    assert not (tmp_path / "done").exists()


def test_unknown_names_get_a_suggestion() -> None:
    assert message(max_epoch=3) == (
        "Expected --trainer.max_epoch to be an argument of Lightning's Trainer (`lightning-ft fit --help all`); got "
        "'max_epoch'. Did you mean 'max_epochs'?"
    )
    check_trainer_names({"max_time": "1h"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_nodes": "many"}, "Expected --trainer.num_nodes to be a whole number; got 'many'."),
        ({"deterministic": 3}, "Expected --trainer.deterministic to be "),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.NoSuch"}]}, "Expected --trainer.callbacks"),
        ({"callbacks": [{"class_path": STOPPING, "init_args": {"patienc": 3}}]}, "Expected --trainer.callbacks"),
    ],
)
def test_wrong_values_are_one_sentence(values: dict[str, Any], expected: str) -> None:
    assert message(**values).startswith(expected)
