"""From a flag's text or a YAML value to the type that an option declares, or a mismatch in words."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

TRUE, FALSE, NONE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"}), frozenset({"none", "null"})


class MismatchError(ValueError):
    """A value that does not fit; the text says what was expected ('a whole number')."""


def coerce(value: Any, annotation: Any, *, text: bool) -> Any:
    """`value` in the declared type.

    Args:
        value: from a flag: a string, or a list of strings where several words followed it; from YAML: anything.
        annotation: the declared type: a class, `X | None`, `Literal[...]`, `list[X]`, `Any` ...
        text: whether it comes from a flag, so that `3` and `[a,b]` are still to be read.

    Raises:
        MismatchError: it does not fit.
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _union(value, get_args(annotation), text=text)
    if origin is Literal:
        return _literal(value, get_args(annotation), text=text)
    if origin in (list, tuple, set, frozenset) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence(value, annotation, text=text)
    if annotation in (list, tuple):
        return annotation(_items(value, annotation, text=text))
    if isinstance(value, list) and text and annotation is not Any:
        raise MismatchError(f"{describe(annotation)}, one word")
    if origin is dict or annotation is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return _mapping(value, annotation, text=text)
    scalar = _SCALARS.get(annotation)
    return scalar(value, text) if scalar else _read(value, text=text)


def describe(annotation: Any) -> str:
    """The type in words, for help and errors."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(arg) for arg in args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else str(args[0])
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin in (list, tuple, set, frozenset) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list of {_PLURAL.get(args[0], describe(args[0])) if args else 'values'}"
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "a mapping"
    return "a value"


def show(value: Any) -> str:
    """A value as the user typed it, shortened."""
    shown = "nothing" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    kind = {bool: "true or false", int: "a number", float: "a number", dict: "a mapping", list: "a list"}.get(type(value))
    return shown if value is None else f"'{shown}' ({kind})" if kind else f"'{shown}'"


def is_list(annotation: Any) -> bool:
    """Whether several words may follow the flag."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(is_list(arg) for arg in get_args(annotation))
    return annotation in (list, tuple) or get_origin(annotation) in (list, tuple, set, frozenset, Sequence)


def is_bool(annotation: Any) -> bool:
    """Whether the flag may stand alone, meaning true."""
    return annotation is bool or (get_origin(annotation) in (Union, types.UnionType) and bool in get_args(annotation))


def read_yaml_text(value: str) -> Any:
    """A flag's text as YAML 1.1 reads it, save that `1e-4` is a number."""
    import yaml

    try:
        read = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise MismatchError("YAML, as [a, b] or {key: value}") from error
    if isinstance(read, str):
        try:
            return float(read) if "e" in read.lower() and any(c.isdigit() for c in read) else read
        except ValueError:
            return read
    return read


def _read(value: Any, *, text: bool) -> Any:
    if not text:
        return value
    if isinstance(value, list):
        return [_read(item, text=True) for item in value]
    return read_yaml_text(value) if isinstance(value, str) else value


def _union(value: Any, args: tuple[Any, ...], *, text: bool) -> Any:
    if type(None) in args and (value is None or (text and isinstance(value, str) and value.lower() in NONE)):
        return None
    members = [arg for arg in args if arg is not type(None)]
    # A text fits everything, so it is asked last: `int | str` reads 2 as a number.
    members.sort(key=lambda arg: arg is str)
    if isinstance(value, str) and str in members and not (text and value.startswith("[")):
        members = [arg for arg in members if not is_list(arg)]
    for member in members:
        try:
            return coerce(value, member, text=text)
        except MismatchError:
            continue
    raise MismatchError(describe(Union[args]))  # noqa: UP007 - the members are known at run time only


def _literal(value: Any, choices: tuple[Any, ...], *, text: bool) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
        if text and value == str(choice):
            return choice
    # YAML 1.1 reads on, off, yes and no as truth values.
    if isinstance(value, bool) and not text:
        for choice in choices:
            if isinstance(choice, str) and choice in (TRUE if value else FALSE):
                return choice
    raise MismatchError(describe(Literal[choices]))


def _items(value: Any, annotation: Any, *, text: bool) -> list[Any]:
    if text:
        words = value if isinstance(value, list) else [value]
        items: list[Any] = []
        for word in words:
            read = read_yaml_text(word) if isinstance(word, str) and word.startswith("[") else [word]
            items += [str(item) for item in read] if isinstance(read, list) else [word]
        return items
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (set, Mapping)) or value is None or isinstance(value, bool):
        raise MismatchError(describe(annotation))
    return [value]


def _sequence(value: Any, annotation: Any, *, text: bool) -> Any:
    args = get_args(annotation)
    items = _items(value, annotation, text=text)
    origin = get_origin(annotation)
    kinds: Sequence[Any] = args[:1] * len(items)
    if origin is tuple and args and args[-1] is not Ellipsis:
        kinds = args
        if len(items) != len(args):
            raise MismatchError(f"{len(args)} values")
    try:
        coerced = [coerce(item, kind, text=text) for item, kind in zip(items, kinds, strict=True)]
    except MismatchError:
        raise MismatchError(describe(annotation)) from None
    return origin(coerced) if origin in (tuple, set, frozenset) else coerced


def _mapping(value: Any, annotation: Any, *, text: bool) -> dict[str, Any]:
    read = _read(value, text=text)
    if not isinstance(read, Mapping):
        raise MismatchError("a mapping, as {key: value}")
    return dict(read)


def _bool(value: Any, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if text and isinstance(value, str) and value.lower() in TRUE | FALSE:
        return value.lower() in TRUE
    raise MismatchError(_WORDS[bool])


def _int(value: Any, text: bool) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if text and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    raise MismatchError(_WORDS[int])


def _float(value: Any, text: bool) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    # Also from YAML, which reads 2e-4 as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise MismatchError(_WORDS[float])


def _str(value: Any, text: bool) -> str:
    if isinstance(value, str):
        return value
    raise MismatchError("text (quote it)" if isinstance(value, (int, float)) else "text")


def _path(value: Any, text: bool) -> Path:
    return Path(_str(value, text))


def _none(value: Any, text: bool) -> None:
    if value is not None and not (text and isinstance(value, str) and value.lower() in NONE):
        raise MismatchError("none")


_SCALARS: dict[Any, Any] = {bool: _bool, int: _int, float: _float, str: _str, Path: _path, type(None): _none}
_WORDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", type(None): "none",
    dict: "a mapping", list: "a list", tuple: "a list", Any: "a value",
}  # fmt: skip
_PLURAL: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}
