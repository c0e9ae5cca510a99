"""Lightning's parser of its Trainer's arguments, whose errors are one sentence each. Importing it imports jsonargparse."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
from typing import TYPE_CHECKING, Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "none", "list": "a list",
    "dict": "a mapping",
}  # fmt: skip


class Parser(LightningArgumentParser):
    """Lightning's parser with one-sentence errors and without abbreviated flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Errors are raised instead of printed below the whole usage; those of nested classes are part of the outer one.
        super().__init__(*args, **{**kwargs, "exit_on_error": False})

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # `--trainer.max_epoch` would silently mean max_epochs; allow_abbrev=False has no effect here.
        return []


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
