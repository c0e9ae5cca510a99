"""Phase two: Lightning's own parser, for the Trainer's arguments. Importing this module imports Lightning."""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_ft.cli.classpaths import check_class_paths
from lightning_ft.cli.options import MISSING, options_of
from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from lightning_ft.cli.resolve import Request


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


class TrainerCLI(LightningCLI):
    """LightningCLI over a `Request`: it checks the Trainer's arguments and hands the config on.

    Args:
        stage: `fit`, `validate`, `test` or `predict`.
        request: the checked values of phase one.
        run: called with the final config.
    """

    def __init__(self, stage: str, request: Request, run: Callable[[TrainingConfig], Any]) -> None:
        check_trainer_names(request.trainer)
        self.request, self.run, self.result = request, run, None
        argv, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns about flags that it was not given
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                args={"subcommand": stage, stage: {"trainer": request.trainer}},
                parser_class=Parser,
                parser_kwargs={"prog": "lightning-ft"},
                save_config_callback=None,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        finally:
            sys.argv = argv
        self.result = self.run(self.checked)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The Trainer's arguments and ours; there is no model class to choose."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for option in options_of(TrainingConfig).values():
            if option.name != "trainer":
                default = None if option.default is MISSING else option.default
                parser.add_argument(f"--{option.name}", type=option.type, default=default, help=option.help)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's hyper-parameters override the command line, silently."""

    def instantiate_classes(self) -> None:
        """Take the checked arguments; the run itself makes model, data and Trainer."""
        checked = self.config[str(self.subcommand)].trainer
        self.checked = self.request.config({key: _plain(checked[key]) for key in self.request.trainer})

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: the run starts when LightningCLI is done, with sys.argv as launchers of further ranks need it."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's own, with one-sentence errors."""
        with _one_sentence():
            super().parse_arguments(parser, args)


def check_trainer_names(trainer: Mapping[str, Any]) -> None:
    """Refuse arguments that Lightning's Trainer does not have.

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
    with _one_sentence():
        made = parser.instantiate(parser.parse_object({"trainer": plain})).trainer
    out = {key: made[key] if key in plain else value for key, value in values.items()}
    for key in SEVERAL:
        if key in out and not isinstance(out[key], list):
            out[key] = [] if out[key] is None else [out[key]]
    return out


def trainer_help() -> str:
    """Lightning's own arguments, as its parser prints them."""
    parser = Parser(prog="lightning-ft fit", usage="lightning-ft fit [--trainer.ARGUMENT VALUE ...]", add_help=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser.format_help()


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
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


def _plain(value: Any) -> Any:
    """A parsed value without jsonargparse's namespaces, ready for YAML."""
    if isinstance(value, Namespace):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
