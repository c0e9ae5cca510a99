"""Phase two of the command line: what Lightning's own parser makes of `--trainer.*`."""

from __future__ import annotations

import inspect
import sys

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

import lightning_ft
from lightning_ft.cli.lightning import TrainerCLI
from lightning_ft.cli.resolve import parse, resolve
from lightning_ft.config import TrainingConfig, option_names
from lightning_ft.errors import UsageError
from lightning_ft.run.trainer_arguments import trainer_arguments
from lightning_ft.run.trainer_words import ALIASES, DECIDED

STOPPING = "lightning.pytorch.callbacks.EarlyStopping"


def config_of(*argv: str, stage: str = "fit") -> TrainingConfig:
    got: list[TrainingConfig] = []
    TrainerCLI(stage, resolve(parse(("base", "--data", "x", *argv)), stage=stage), got.append)
    assert len(got) == 1
    return got[0]


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_given_arguments_reach_the_config_typed_and_no_others(stage: str) -> None:
    before = list(sys.argv)
    config = config_of("--trainer.limit_val_batches", "0.5", "--trainer.deterministic=true", "--seed", "4", stage=stage)
    assert config.trainer == {"limit_val_batches": 0.5, "deterministic": True}
    assert (config.model, config.seed) == ("base", 4)
    assert sys.argv == before


def test_class_paths_of_lightning_stay_plain_and_become_objects() -> None:
    config = config_of("--trainer.callbacks", f"[{{class_path: {STOPPING}, init_args: {{monitor: val_loss, patience: 7}}}}]")
    (plain,) = config.trainer["callbacks"]
    assert (plain["class_path"], plain["init_args"]["patience"]) == (STOPPING, 7)
    assert TrainingConfig.from_dict(config.as_dict()).trainer == config.trainer
    made = trainer_arguments(config.trainer)["callbacks"]
    assert isinstance(made[0], EarlyStopping)
    assert made[0].patience == 7
    assert isinstance(plain, dict)
    single = config_of("--trainer.callbacks.class_path", STOPPING, "--trainer.callbacks.init_args.monitor", "x")
    assert [type(callback) for callback in trainer_arguments(single.trainer)["callbacks"]] == [EarlyStopping]


def test_objects_from_python_pass_through() -> None:
    timer = Timer()
    assert trainer_arguments({"callbacks": [timer], "limit_val_batches": 2}) == {"callbacks": [timer], "limit_val_batches": 2}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ("--trainer.max_epoch", "3"),
            "Expected --trainer.max_epoch to be an argument of Lightning's Trainer (`lightning-ft fit --help all`); got "
            "'max_epoch'. Did you mean 'max_epochs'?",
        ),
        (("--trainer.deterministic_", "3"), None),
        (
            ("--trainer.limit_train_batches", "0.5"),
            "Expected no --trainer.limit_train_batches, as all steps are planned before the first one, by --epochs or "
            "--max_steps; got 0.5.",
        ),
        (
            ("--trainer.gradient_clip_algorithm", "value"),
            "Expected no --trainer.gradient_clip_algorithm, as gradients are clipped by their norm, with --max_grad_norm; got "
            "value.",
        ),
        (("--trainer.barebones", "nope"), "Expected --trainer.barebones to be true or false; got 'nope'."),
        (
            ("--trainer.callbacks.class_path", STOPPING, "--trainer.callbacks.init_args.monito", "x"),
            f"Expected --trainer.callbacks to be a usable class; problem with given class_path '{STOPPING}': Option 'monito' "
            "is not accepted.",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(argv: tuple[str, ...], sentence: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(*argv)
    assert "\n" not in str(caught.value)
    if sentence:
        assert str(caught.value) == sentence


def test_what_a_run_decides_are_arguments_of_the_trainer_and_no_options() -> None:
    known = set(inspect.signature(Trainer.__init__).parameters)
    assert DECIDED.keys() | ALIASES.keys() <= known
    assert not DECIDED.keys() & ALIASES.keys()
    assert set(ALIASES.values()) <= set(option_names())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_steps": 5}, "Expected the option 'max_steps' in place of the Trainer's 'max_steps'; got the latter."),
        ({"max_epochs": 2}, "Expected the option 'epochs' in place of the Trainer's 'max_epochs'; got the latter."),
        ({"min_steps": 2}, "Expected no --trainer.min_steps, as all steps are planned before the first one, by"),
    ],
)
def test_python_is_told_the_option_before_anything_is_loaded(arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        lightning_ft.fit(model="embedded", data="nowhere.jsonl", trainer=arguments)
    assert str(caught.value).startswith(sentence)


def test_foreign_class_paths_are_refused_from_python_too() -> None:
    with pytest.raises(UsageError, match=r"got 'os\.system'"):
        trainer_arguments({"logger": {"class_path": "os.system"}})
