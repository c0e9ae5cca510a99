"""Every everyday switch is a flag, a YAML key and a keyword of one name, with a range that is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lightning_ft.cli.help import GROUPS
from lightning_ft.cli.resolve import parse, resolve
from lightning_ft.config import SHARES, TrainingConfig
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

SWITCHES: dict[str, tuple[Any, dict[str, Any]]] = {
    "early_stopping": (3, {}), "early_stopping_threshold": (0.01, {"early_stopping": 2}),
    "monitor": ("val_token_accuracy", {}), "monitor_mode": ("max", {}), "keep_best": (4, {}),
    "save_every": (7, {}), "eval_every": (7, {}), "log_every": (7, {}),
    "lr_scheduler": ("inverse_sqrt", {}), "warmup": (12.0, {}), "lr_cycles": (4, {"lr_scheduler": "cosine_with_restarts"}),
    "lr_decay": (0.3, {"lr_scheduler": "wsd"}), "lr_decay_shape": ("linear", {"lr_scheduler": "wsd"}), "lr_min": (0.1, {}),
    "weight_decay": (0.1, {}), "max_grad_norm": (0.5, {}), "label_smoothing": (0.1, {}), "neftune_noise_alpha": (5.0, {}),
    "dropout": (0.1, {}), "gradient_checkpointing": (3, {}), "accumulate": (4, {}), "eval_batch_size": (8, {}),
    "workers": (2, {}), "precision": ("fp16", {}), "activation_offload": (True, {"gradient_checkpointing": True}),
    "compile": (True, {}),
}  # fmt: skip
"""A value of each that is not its default, and what it needs beside it."""


@pytest.mark.parametrize("name", SWITCHES)
def test_flag_key_and_keyword_are_one(name: str, tmp_path: Path) -> None:
    value, needed = SWITCHES[name]
    wanted = TrainingConfig(model="m", data=["d.jsonl"], **{name: value}, **needed).as_dict()
    assert wanted != TrainingConfig(model="m", data=["d.jsonl"], **needed).as_dict()
    words = [word for key, given in {name: value, **needed}.items() for word in (f"--{key}", str(given).lower())]
    assert resolve(parse(["m", "--data", "d.jsonl", *words]), stage="fit").config().as_dict() == wanted
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"model": "m", "data": "d.jsonl", name: value, **needed}))
    assert resolve(parse(["--config", str(file)]), stage="fit").config().as_dict() == wanted
    assert name in [option for options in GROUPS.values() for option in options], "--help lists it"


@pytest.mark.parametrize("name", SHARES)
def test_shares_are_below_one(name: str) -> None:
    for value in (1.0, 1.5):
        with pytest.raises(UsageError, match=rf"^Expected --{name} to be below 1; got {value}\.$"):
            TrainingConfig(model="m", data=["d"], **{name: value})  # type: ignore[arg-type]  # a name of a number


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_scheduler": "wds"}, "Expected --lr_scheduler to be one of constant, linear, cosine, cosine_with_restarts, "),
        ({"lr_cycles": 3}, "--lr_scheduler cosine_with_restarts with --lr_cycles, which nothing else reads; got cosine."),
        ({"lr_cycles": 2.5}, "Expected --lr_cycles to be a whole number; got 2.5."),
        ({"lr_decay": 0.5}, "Expected --lr_scheduler wsd with --lr_decay, which nothing else reads; got cosine."),
        ({"lr_decay_shape": "linear"}, "--lr_scheduler wsd with --lr_decay_shape, which nothing else reads; got cosine."),
        ({"lr_decay_shape": "sqrt", "lr_scheduler": "wsd"}, "to be one of linear, cosine, 1-sqrt; got 'sqrt'"),
        ({"lr_min": 0.1, "lr_scheduler": "constant"}, "linear or cosine or cosine_with_restarts or wsd with --lr_min, "),
        ({"lr_min": 0.1, "lr_scheduler": "inverse_sqrt"}, "with --lr_min, which nothing else reads; got inverse_sqrt."),
        ({"monitor_mode": "down"}, "Expected --monitor_mode to be one of auto, min, max; got 'down'."),
        ({"early_stopping_threshold": 0.1}, "Expected --early_stopping with --early_stopping_threshold, which nothing"),
        ({"dropout": -0.1}, "Expected --dropout to be at least 0; got -0.1."),
        ({"eval_batch_size": 0}, "Expected --eval_batch_size to be above 0; got 0."),
        ({"neftune_noise_alpha": "5"}, "Expected --neftune_noise_alpha to be a finite number; got '5'."),
    ],
)  # fmt: skip
def test_wrong_values(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainingConfig(model="m", data=["d"], **options)
    assert expected in str(caught.value)
