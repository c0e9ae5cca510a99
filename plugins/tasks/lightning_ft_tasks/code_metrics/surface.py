"""Metrics of the text of code: does it parse, is it the expected text, how near to it is it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.metric import RowMetric
from lightning_ft_tasks.answers import answer_of
from lightning_ft_tasks.code_metrics.grammar import is_valid, language_of, require
from lightning_ft_tasks.code_metrics.programs import code_of, program_of, python_tree
from lightning_ft_tasks.metrics import TextMetric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import ScoredRow


_SIGNATURE = "code:first fence|strip:line ends"


class SyntaxValid(RowMetric):
    """Share of answers that are a program of at least one statement and parse without an error; none is run.

    The code is the first fenced block of the answer, else the whole answer. Python is parsed by the running interpreter, where
    an answer that goes on where the code of its prompt stops is parsed together with it; other languages (the row's column
    `language`) by tree-sitter, alone. Rows in a language without a parser here, one that is not installed say, do not count.
    """

    name: ClassVar[str] = "syntax_valid"
    percent: ClassVar[bool] = True
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"right": "def one():\n    return 1\n", "wrong": "def one(:\n", "reference": "x = 1"},
        {"right": "```python\nx = 1\n```", "wrong": "", "reference": "x = 1"},
    )

    @property
    def signature(self) -> str:
        """Which part is parsed, and Python's version."""
        return f"code:first fence|python:{sys.version_info.major}.{sys.version_info.minor}"

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """The score and a one; zeros for a row in a language that cannot be parsed here."""
        return super().statistics(row) if parsed_here(row) else (0.0, 0.0)

    def score(self, row: ScoredRow) -> float:
        """1 where the answer parses, else 0."""
        answer = answer_of(row, self.name)
        language = language_of(row)
        if language != "python":
            return float(is_valid(code_of(answer), language))
        if not code_of(answer).strip():
            return 0.0
        tree = python_tree(code_of(answer)) or python_tree(program_of(row, answer))
        return float(tree is not None and bool(tree.body))


def parsed_here(row: ScoredRow) -> bool:
    """Whether there is a parser of the row's language."""
    try:
        language = language_of(row)
        if language != "python":
            require(language, row.row)
    except ValueError:
        return False
    return True


class CodeExactMatch(TextMetric):
    """Share of answers whose code is that of a reference, but for white space at the end of lines and lines at the end.

    The code is the first fenced block of either, else all of it. Indentation, comments and blank lines within count.
    """

    name: ClassVar[str] = "code_exact_match"

    @property
    def signature(self) -> str:
        """Which part counts."""
        return _SIGNATURE

    def compare(self, prediction: str, reference: str) -> float:
        """1 when equal, else 0."""
        return float(stripped(prediction) == stripped(reference))


class EditSimilarity(TextMetric):
    """1 - d / max(m, n) with the Levenshtein distance d of two codes of m and n characters, stripped as for `code_exact_match`.

    So it is 1 for equal codes and 0 where no character can stay. The tables of CodeXGLUE's line completion have another
    number under this name: 1 - d' / (m + n), in whose distance d' a substitution costs 2.
    """

    name: ClassVar[str] = "edit_similarity"

    @property
    def signature(self) -> str:
        """Which part counts, and by what its distance is divided."""
        return f"{_SIGNATURE}|levenshtein:characters|by:longer"

    def compare(self, prediction: str, reference: str) -> float:
        """The similarity; 1 where both are empty."""
        one, other = stripped(prediction), stripped(reference)
        return 1 - levenshtein(one, other) / max(len(one), len(other), 1)


def stripped(answer: str) -> str:
    """The code of an answer without white space at the end of lines and without lines at the end."""
    return "\n".join(line.rstrip() for line in code_of(answer).split("\n")).rstrip("\n")


def levenshtein(one: str, other: str) -> int:
    """Fewest insertions, deletions and substitutions of characters that make one text of another.

    Myers 1999 (doi:10.1145/316542.316550) in the form of Hyyro 2003: the m differences between neighbours in a column of the
    dynamic programme, each -1, 0 or 1, are the bits of two integers, and a column follows from the one before in a dozen
    operations on them; so time is O(m n / 64) and memory O(m).
    """
    text, pattern = sorted((one, other), key=len)  # fewer steps with wider integers
    if not text:
        return len(pattern)
    places: dict[str, int] = {}
    for i, character in enumerate(pattern):
        places[character] = places.get(character, 0) | 1 << i
    whole, last = (1 << len(pattern)) - 1, 1 << len(pattern) - 1
    plus, minus, distance = whole, 0, len(pattern)  # column 0: each row one more than the row above
    for character in text:
        equal = places.get(character, 0)
        diagonal = ((equal & plus) + plus) ^ plus | equal | minus  # where the step from above left costs nothing
        right_plus = minus | whole & ~(diagonal | plus)  # differences to the column before
        right_minus = plus & diagonal
        distance += bool(right_plus & last) - bool(right_minus & last)
        right_plus = right_plus << 1 | 1  # row 0 grows with every character
        plus = (right_minus << 1 | ~(diagonal | right_plus)) & whole
        minus = right_plus & diagonal & whole
    return distance
