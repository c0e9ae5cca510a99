"""Arguments of Lightning's Trainer: checked by Lightning's own parser, class paths made into objects."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_ft.classpaths import check_class_paths
from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft.run.trainer_words import ALIASES, DECIDED

SEVERAL = ("callbacks", "plugins")
"""Arguments that may be one thing or a list."""


def check_trainer_names(trainer: Mapping[str, Any]) -> None:
    """Refuse arguments that Lightning's Trainer does not have, or that this run's does not leave to anybody.

    Raises:
        UsageError: the first of them.
    """
    known = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    for key in trainer:
        if key not in known:
            hint = did_you_mean(key, known)
            raise UsageError(
                f"Expected --trainer.{key} to be an argument of Lightning's Trainer (`lightning-ft fit --help all`); got "
                f"'{key}'.{hint}"
            )
        if key in DECIDED:
            raise UsageError(f"Expected no --trainer.{key}, as {DECIDED[key]}; got {trainer[key]}.")
        if key in ALIASES:  # of flags and config files it was made that option
            raise UsageError(f"Expected the option '{ALIASES[key]}' in place of the Trainer's '{key}'; got the latter.")


def trainer_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """`TrainingConfig.trainer` ready for `Trainer(**...)`: checked, with class paths of trusted code made into objects.

    Raises:
        UsageError: an unknown argument, a wrong value, or a class path of foreign code.
    """
    if not values:
        return {}
    check_trainer_names(values)
    check_class_paths({"trainer": values}, "trainer")
    from lightning_ft.run.trainer_parser import Parser, one_sentence  # a run without such arguments needs no jsonargparse

    parser = Parser(prog="lightning-ft")
    parser.add_lightning_class_args(Trainer, "trainer")
    # Objects, as callbacks from Python, are what they should become.
    plain = {key: copy.deepcopy(value) for key, value in values.items() if _is_plain(value)}
    with one_sentence():
        made = parser.instantiate(parser.parse_object({"trainer": plain})).trainer
    out = {key: made[key] if key in plain else value for key, value in values.items()}
    for key in SEVERAL:
        if key in out and not isinstance(out[key], list):
            out[key] = [] if out[key] is None else [out[key]]
    return out


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
