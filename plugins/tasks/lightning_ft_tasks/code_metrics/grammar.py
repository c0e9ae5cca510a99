"""Syntax trees of many languages by tree-sitter, which takes any text, marks what is wrong in it, and runs nothing."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node, Parser, Tree

    from lightning_ft.types import ScoredRow

LANGUAGES = ("python", "javascript", "java", "go", "c", "rust")
"""Languages whose grammars the extra `code` installs."""
_SPELLINGS = {"py": "python", "python3": "python", "js": "javascript", "golang": "go", "rs": "rust"}
_COMMENTS = ("comment", "line_comment", "block_comment")


def language_of(row: ScoredRow, among: tuple[str, ...] = LANGUAGES) -> str:
    """The language of a row's code: its column `language`, else python.

    Raises:
        ValueError: it is none of those asked for.
    """
    given = row.example.meta.get("language") or "python"
    name = _SPELLINGS.get(str(given).lower(), str(given).lower())
    if name not in among:
        raise ValueError(f"{row.row}: expected 'language' to be one of {', '.join(among)}, got {given!r:.80}")
    return name


def require(language: str, row: str) -> None:
    """See to it that texts of a language can be parsed.

    Args:
        language: one of `LANGUAGES`.
        row: the row that needs it, for the message.

    Raises:
        ValueError: the grammar is not installed.
    """
    lacking = [name for name in ("tree_sitter", f"tree_sitter_{language}") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ValueError(
            f"{row}: expected the parser of {language} code, got no package {lacking[0].replace('_', '-')};"
            " type `pip install 'lightning-ft-tasks[code]'`"
        )


@functools.cache
def _parser(language: str) -> Parser:
    from tree_sitter import Language, Parser

    return Parser(Language(importlib.import_module(f"tree_sitter_{language}").language()))


def parse(code: str, language: str) -> Tree:
    """The concrete syntax tree of a text, whatever is wrong in it."""
    return _parser(language).parse(code.encode("utf-8", "surrogatepass"))


def is_valid(code: str, language: str) -> bool:
    """Whether a text is a program of at least one statement, without an error."""
    root = parse(code, language).root_node
    return not root.has_error and any(node.type not in _COMMENTS for node in root.named_children)


def nodes_of(root: Node) -> list[Node]:
    """A node and all below it, every one after the one that it belongs to."""
    nodes = [root]
    for node in nodes:  # which grows; trees of bad code may be too deep for a recursion
        nodes.extend(node.children)
    return nodes


def without_comments(code: str, language: str) -> str:
    """A text without comments, docstrings of Python, blank lines and white space at its end.

    A comment leaves a space, so that what stood on both sides of it does not become one word.
    """
    data = bytearray(code.encode("utf-8", "surrogatepass"))
    for node in nodes_of(parse(code, language).root_node):
        if node.type in _COMMENTS or (language == "python" and _is_docstring(node)):
            kept = bytes(byte for byte in data[node.start_byte : node.end_byte] if byte == 0x0A)
            data[node.start_byte : node.end_byte] = kept.rjust(node.end_byte - node.start_byte)
    lines = data.decode("utf-8", "surrogatepass").split("\n")
    return "\n".join(line for line in lines if line.strip()).rstrip()


def _is_docstring(node: Node) -> bool:
    """Whether a statement is a text and nothing else."""
    return node.type == "expression_statement" and [child.type for child in node.children] == ["string"]
