"""What all checks share: naming a broken clause, and the clause about options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def require(clause: str, subject: str, holds: bool, message: str) -> None:
    """Raise an `AssertionError` that names the clause and what broke it, unless it holds."""
    if not holds:
        raise AssertionError(f"{subject} breaks the clause '{clause}': {message}")


def run_clauses(clauses: Mapping[str, Callable[..., None]], *args: Any) -> None:
    """Every clause in order."""
    for clause in clauses.values():
        clause(*args)


def options_documented(cls: type[Any]) -> None:
    """Clause `options`: a named frozen dataclass whose every field has a default and its docstring beneath it."""
    subject = cls.__name__
    name = getattr(cls, "name", None)
    require("options", subject, isinstance(name, str) and name != "", "it needs a class variable `name`, what users type")
    require("options", subject, "__dataclass_params__" in vars(cls), "it must be decorated with @dataclass(frozen=True)")
    require("options", subject, vars(cls)["__dataclass_params__"].frozen, "its dataclass must be frozen")
    documented = documented_fields(cls)
    for field in dataclasses.fields(cls):
        bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        require("options", subject, not bare, f"option `{field.name}` needs a default")
        require("options", subject, field.name in documented, f"option `{field.name}` needs a docstring beneath it")
    generated = (cls.__doc__ or "").startswith(f"{subject}(")  # what dataclass writes where there is none
    require("options", subject, not generated, "it needs a docstring")


def documented_fields(cls: type[Any]) -> set[str]:
    """Names of annotated class attributes with a string literal beneath, over the class and its bases."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base is object or not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for first, second in itertools.pairwise(statements):
            if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name) and _is_docstring(second):
                found.add(first.target.id)
    return found


def _is_docstring(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
