"""The options of `TrainingConfig` and of registered classes, read once from their fields and docstrings.

Flags, YAML keys and `--help` of `fit` and its like are made from the `Option`s of this module.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import textwrap
import typing
from dataclasses import dataclass
from typing import Any

MISSING = dataclasses.MISSING
EVERYDAY_OF_OPTIMIZERS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""Arguments of optimisers that are everyday options, and their one name."""


@dataclass(frozen=True)
class Option:
    """One option of a config or a class."""

    name: str
    type: Any
    """The annotation; `Any` where it cannot be resolved."""
    default: Any
    """`MISSING` when the option must be given."""
    help: str


def options_of(cls: type[Any]) -> dict[str, Option]:
    """The options of a dataclass (fields) or of an optimiser (arguments of its `__init__`)."""
    return _of_dataclass(cls) if dataclasses.is_dataclass(cls) else _of_init(cls)


@functools.cache
def _of_dataclass(cls: type[Any]) -> dict[str, Option]:
    docs: dict[str, str] = {}
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
            hints |= _hints(base)
    out = {}
    for f in dataclasses.fields(cls):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if f.init:
            out[f.name] = Option(f.name, hints.get(f.name, Any), default, docs.get(f.name, ""))
    return out


def _of_init(cls: type[Any]) -> dict[str, Option]:
    docs = _argument_docs(cls)
    hints = _hints(cls.__init__)
    out = {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name == "params":
            continue
        if name in EVERYDAY_OF_OPTIMIZERS:
            continue
        default = MISSING if parameter.default is parameter.empty else parameter.default
        out[name] = Option(name, hints.get(name, Any), default, docs.get(name, ""))
    return out


def _hints(thing: Any) -> dict[str, Any]:
    """Resolved annotations; names that exist only for type checkers become `Any`, one by one."""
    namespace = vars(sys.modules[thing.__module__]) if getattr(thing, "__module__", None) in sys.modules else {}
    out = {}
    for name, annotation in getattr(thing, "__annotations__", {}).items():
        try:
            out[name] = typing.get_type_hints(_holder(name, annotation), namespace)[name]
        except (NameError, AttributeError, TypeError, SyntaxError):
            out[name] = Any
    return out


def _holder(name: str, annotation: Any) -> Any:
    """An object with one annotation, so that one that fails does not take the others with it."""
    return type("Holder", (), {"__annotations__": {name: annotation}})


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstring beneath each field of a class, on one line each; empty where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for field, after in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr)):
            continue
        if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            docs[field.target.id] = " ".join(after.value.value.split())
    return docs


def _argument_docs(cls: type[Any]) -> dict[str, str]:
    import docstring_parser

    docs: dict[str, str] = {}
    for text in (cls.__doc__, cls.__init__.__doc__):
        for parameter in docstring_parser.parse(text or "").params:
            docs[parameter.arg_name] = " ".join((parameter.description or "").split())
    return docs
