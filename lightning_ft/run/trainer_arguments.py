"""Arguments of Lightning's Trainer: checked by Lightning's own parser, class paths made into objects."""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_ft.classpaths import check_class_paths
from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft.run.trainer_words import ALIASES, DECIDED

WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "none", "list": "a list",
    "dict": "a mapping",
}  # fmt: skip


SEVERAL = ("callbacks", "plugins")
"""Arguments that may be one thing or a list."""


class Parser(LightningArgumentParser):
    """Lightning's parser with one-sentence errors and without abbreviated flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Errors are raised instead of printed below the whole usage; those of nested classes are part of the outer one.
        super().__init__(*args, **{**kwargs, "exit_on_error": False})

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # `--trainer.max_epoch` would silently mean max_epochs; allow_abbrev=False has no effect here.
        return []


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


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Within it jsonargparse's errors become one sentence each."""
    try:
        yield
    except argparse.ArgumentError as error:
        raise UsageError(_sentence(str(error))) from None


def _sentence(message: str) -> str:
    """One sentence from jsonargparse's list of what it tried."""
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip()]
    key = re.search(r'key "([\w.\[\]]+)"', lines[0])
    name = f"--{key[1]}" if key else "the Trainer's arguments"
    value = next((found[1] for line in lines if (found := re.search(r"(?:Given|Got) value: (.*)", line))), None)
    for problem, after in itertools.pairwise([*lines, ""]):
        if problem.startswith("Problem with given class_path"):
            return f"Expected {name} to be a usable class; {problem.lower()[:1]}{problem[1:].rstrip(':')}: {after.rstrip('.')}."
        if problem.startswith("Import path"):
            return f"Expected {name} to be a usable class; {problem.lower()[:1]}{problem[1:].rstrip('.')}."
    kinds = [WORDS.get(kind, kind) for line in lines for kind in re.findall(r"^Expected a <class '(\w+)'>", line)]
    if kinds and value is not None:
        return f"Expected {name} to be {' or '.join(dict.fromkeys(kinds))}; got '{value}'."
    return (
        f"Expected {name} to be valid for Lightning's Trainer (`lightning-ft fit --help all`); {' '.join(lines[1:] or lines)}"
    )
