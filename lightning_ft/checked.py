"""Whether a value is one that an option of a config may have, by the option's type and limits."""

from __future__ import annotations

import math
import types
import typing
from typing import Any, Literal, get_args

from lightning_ft.errors import UsageError, did_you_mean

WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", dict: "a mapping"}
"""Types of options as messages name them."""


def check_choice(name: str, value: Any, hint: Any) -> None:
    """Refuse a word that is none of a `Literal`'s."""
    choices = next((get_args(kind) for kind in _kinds(hint) if typing.get_origin(kind) is Literal), ())
    if choices and value not in choices and not (value is None and type(None) in _kinds(hint)):
        meant = did_you_mean(str(value), choices)
        raise UsageError(f"Expected --{name} to be one of {', '.join(choices)}; got '{value}'.{meant}")


def check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type than the option's."""
    kinds = _kinds(hint)
    if not any(_is_a(value, kind) for kind in kinds):
        words = [_words(kind) for kind in kinds if kind is not type(None)]
        raise UsageError(f"Expected --{name} to be {' or '.join(words)}; got {value!r}.")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of which an option may be; None beside a choice of words makes another kind of union than beside a type."""
    return get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of an option: a truth value is no number, a whole number is one."""
    origin = typing.get_origin(kind) or kind
    if origin in (Any, Literal):
        return True
    if origin in (int, float):
        numbers = int if origin is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    if origin is list:
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    return isinstance(value, origin)


def _words(kind: Any) -> str:
    origin = typing.get_origin(kind) or kind
    return f"a list, each {WORDS[get_args(kind)[0]]}" if origin is list else WORDS[origin]


def check_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, below: float | None = None
) -> None:
    """Refuse a number outside its limits; None has none."""
    if value is None:
        return
    if above is not None and value <= above:
        raise UsageError(f"Expected --{name} to be above {above}; got {value}.")
    if least is not None and value < least:
        raise UsageError(f"Expected --{name} to be at least {least}; got {value}.")
    if below is not None and value >= below:
        raise UsageError(f"Expected --{name} to be below {below}; got {value}.")
