"""Options as they are typed after `fit`: the inverse of reading a command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from lightning_ft.cli.values import MismatchError, read_yaml_text
from lightning_ft.config import FILES, PLUGGABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lightning_ft.cli.resolve import Request


def words(request: Request, without: Iterable[str] = ()) -> list[str]:
    """The flags that say what a request does, wherever it has it from: flags, files or presets.

    Args:
        request: Checked.
        without: Names of options that are left out.
    """
    left_out = frozenset(without)
    found = [word for name, value in request.values.items() if name not in left_out for word in _option(name, value)]
    return [*found, *(word for name, value in request.trainer.items() for word in flag(f"trainer.{name}", _yaml(value)))]


def _option(name: str, value: Any) -> Iterator[str]:
    """A flag with its words; of a section with options a flag for each."""
    if name in FILES:
        if value:
            yield from (f"--{name}", *([value] if isinstance(value, str) else map(str, value)))
    elif name in PLUGGABLE and isinstance(value, Mapping):
        yield from (f"--{name}", value["name"])
        for key, part in value.items():
            if key != "name":
                yield from flag(f"{name}.{key}", value_word(part))
    else:
        yield from flag(name, value_word(value))


def flag(name: str, word: str) -> tuple[str, ...]:
    """A flag and its word, in one where the word would be taken for another flag."""
    return (f"--{name}={word}",) if word.startswith("-") else (f"--{name}", word)


def value_word(value: Any) -> str:
    """A value of an option that has a type, as one word: true, none, 0.1, [q_proj, v_proj]."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else _flow(value)


def _yaml(value: Any) -> str:
    """A value of an argument that has no type here: its word is read as YAML."""
    if isinstance(value, str):
        try:
            if read_yaml_text(value) == value:
                return value
        except MismatchError:
            pass
    return _flow(value)


def _flow(value: Any) -> str:
    """YAML in one line; JSON's 1e-05 would be a text to it."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
