"""The argument parser of the small commands; plugins' commands may use it, so that all of them err alike."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES = {"int": "a whole number", "float": "a number"}


class CommandParser(argparse.ArgumentParser):
    """argparse with one-sentence `UsageError`s, suggestions, and no abbreviated flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(  # type: ignore[override]  # the overloads differ in the type of the namespace only
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """The arguments.

        Raises:
            UsageError: an unknown flag, a missing or a wrong value.
        """
        out, extra = self.parse_known_args(self.spelled(sys.argv[1:] if args is None else args), namespace)
        if extra:
            flag = extra[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            hint = did_you_mean(flag, known) if flag.startswith("-") else ""
            raise UsageError(f"Expected an option of `{self.prog} --help`, got '{flag}'.{hint}")
        return out

    def spelled(self, args: Sequence[str]) -> list[str]:
        """The words with flags as this parser knows them, where hyphens stand for underscores."""
        known = {option for action in self._actions for option in action.option_strings}
        out = []
        for word in args:
            flag, equals, value = word.partition("=")
            other = f"--{flag[2:].replace('-', '_')}"
            out.append(f"{other}{equals}{value}" if flag.startswith("--") and flag not in known and other in known else word)
        return out

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as ours."""
        wrong = re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message)
        choice = re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message)
        short = re.fullmatch(r"argument (\S+): expected (.*)", message)
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        if wrong:
            text = f"Expected {wrong[1]} to be {_TYPES.get(wrong[2], wrong[2])}; got {wrong[3]}."
        elif choice:
            names = choice[3].replace("'", "").split(", ")
            text = f"Expected {choice[1]} to be one of {', '.join(names)}; got {choice[2]}."
            text += did_you_mean(choice[2].strip("'"), names)
        elif short:
            what = short[2].replace("one argument", "a value").replace("argument", "value")
            text = f"Expected {what} after {short[1]}; got none."
        elif missing:
            text = f"Expected {missing[1]}, got nothing; `{self.prog} --help` shows the options."
        else:
            text = f"{message[:1].upper()}{message[1:]}; `{self.prog} --help` shows the options."
        raise UsageError(text)


def command(name: str, description: str, epilog: str | None = None) -> CommandParser:
    """The parser of `lightning-ft NAME`."""
    return CommandParser(
        prog=f"lightning-ft {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: CommandParser) -> None:
    """The model, as the first argument or after --model; `given_once(arguments, "model", ...)` reads it."""
    add_once(parser, "model", "MODEL", "run folder, adapter, model folder, hub id, or embedded")


def add_once(parser: CommandParser, name: str, metavar: str, text: str) -> None:
    """An argument that is given either by its place or by its flag."""
    parser.add_argument(f"{name}_", nargs="?", metavar=metavar, help=text)
    parser.add_argument(f"--{name}", metavar=metavar, help=f"the same as {metavar}")


def given_once(arguments: argparse.Namespace, name: str, usage: str) -> str:
    """The value of an argument of `add_once`.

    Raises:
        UsageError: it was given twice, or not at all.
    """
    placed, flagged = (getattr(arguments, key) for key in (f"{name}_", name))
    if placed and flagged:
        raise UsageError(f"Expected one value of --{name}, got '{placed}' and '{flagged}'; give it once.")
    if not (placed or flagged):
        raise UsageError(f"Expected --{name}, got nothing; type `{usage}`.")
    return str(placed or flagged)


def choice_of(text: str, flag: str) -> Any:
    """What names a registered class on the command line of a small command: a name, or `{name: ..., option: ...}`.

    Args:
        text: As typed.
        flag: The flag, which is the kind of class after two hyphens.

    Raises:
        UsageError: it begins like a mapping and is none, or an option is of another type than declared.
    """
    if not text.startswith("{"):
        return text
    from lightning_ft.cli.options import options_of
    from lightning_ft.cli.values import MismatchError, coerce, read_yaml_text, show
    from lightning_ft.registry import registry

    try:
        read = read_yaml_text(text)
    except MismatchError as error:
        raise UsageError(f"Expected {flag} to be a name or a mapping, {error}; got {text}.") from error
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return read
    options = options_of(registry()[flag.lstrip("-")][read["name"]].cls)
    for key in read.keys() & options.keys():
        try:
            read[key] = coerce(read[key], options[key].type, text=False)
        except MismatchError as error:
            raise UsageError(f"Expected {flag}.{key} to be {error}; got {show(read[key])}.") from error
    return read


STDOUT = "-"
"""Standard output, in place of a file's name."""


def add_json(parser: CommandParser, what: str) -> None:
    """`--json`, which prints, and `--json FILE`, which writes and leaves the terminal as it is."""
    parser.add_argument(
        "--json", nargs="?", const=STDOUT, metavar="FILE", help=f"print {what} as JSON instead; with FILE: write it there, too"
    )


def check_json(name: str | None) -> None:
    """Refuse a value of `add_json` that is no file which could be written, before the work.

    Raises:
        UsageError: there is no such folder, or the name is that of one, or does not end in .json, as that of a data file which
            was typed behind a --json that was to print.
    """
    if name is None or name == STDOUT:
        return
    path = Path(name)
    if path.suffix != ".json" and (path.is_file() or not path.exists()):  # a pipe or a device is meant
        raise UsageError(f"Expected a name that ends in .json behind --json, or none, which prints; got '{name}'.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"Expected --json to name a file in a folder that exists; got '{name}'.")
