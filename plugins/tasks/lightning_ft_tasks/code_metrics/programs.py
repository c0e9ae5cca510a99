"""The program in an answer, and the answer in the program that its prompt began."""

from __future__ import annotations

import ast
import re
import warnings
from typing import TYPE_CHECKING

from lightning_ft.types import Conversation

if TYPE_CHECKING:
    from lightning_ft.types import ScoredRow

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)\n?")


def code_of(text: str) -> str:
    """The first fenced block of a Markdown answer, without its fences; the whole text where there is none.

    A fence is what CommonMark (section 4.5) takes for one: three or more back-ticks or tildes after at most three spaces,
    closed by at least as many of the same. A block that is not closed ends with the text: the answer was cut off.
    """
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        opening = _FENCE.fullmatch(line)
        if opening and not (opening[1][0] == "`" and "`" in opening[2]):
            closing = re.compile(rf" {{0,3}}{re.escape(opening[1][0])}{{{len(opening[1])},}}[ \t]*\r?\n?")
            inside = lines[number + 1 :]
            end = next((i for i, one in enumerate(inside) if closing.fullmatch(one)), len(inside))
            return "".join(inside[:end])
    return text


def python_tree(code: str) -> ast.Module | None:
    """The syntax tree of Python code; None where it does not parse. Nothing is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an unknown escape, say, which is no error
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: too deeply nested for the parser
            return None


def program_of(row: ScoredRow, answer: str) -> str:
    """The Python program that an answer stands for.

    An answer that is a program by itself (and defines `meta["entry_point"]`, where the row names one) comes after the code of
    its prompt, if that is code: imports and helpers are often there. An answer that is not may go on where the prompt stops,
    as HumanEval's function bodies do; its first line may then lack the indentation, which chat templates strip.
    """
    code, prompt = code_of(answer), code_of(_prompt(row))
    entry = row.example.meta.get("entry_point")
    before = python_tree(prompt)
    has_code = before is not None and any(isinstance(node, _DEFINITIONS) for node in before.body)
    if _is_program(python_tree(code), entry):
        return f"{prompt}\n\n{code}" if has_code else code
    last = (prompt.rstrip().splitlines() or [""])[-1]
    indent = last[: len(last) - len(last.lstrip())]
    for joined in (prompt + code, prompt + indent + code):
        if prompt.strip() and _is_program(python_tree(joined), entry):
            return joined
    return code


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def _is_program(tree: ast.Module | None, entry: object) -> bool:
    """Whether a tree has statements, none of which belongs into a function, and defines the name."""
    if tree is None or not tree.body or any(isinstance(node, ast.Return) for node in tree.body):
        return False
    return entry is None or entry in names_of(tree)


def names_of(tree: ast.Module) -> set[str]:
    """The names that the statements at top level define."""
    return {name for node in tree.body for name in _names(node)}


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]


def _prompt(row: ScoredRow) -> str:
    """What the user asked last."""
    turns = row.example.messages if isinstance(row.example, Conversation) else ()
    return next((turn.content for turn in reversed(turns) if turn.role == "user"), "")
