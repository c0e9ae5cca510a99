"""Source code: as raw text, optionally rearranged so that the model learns to fill a gap, or as the answer to a prompt."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.task import Task
from lightning_ft.types import Conversation, Message, Text
from lightning_ft_tasks.instruct import ANSWERS, QUESTIONS, asked, first_of, text_of

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from lightning_ft.types import Example

CODES = ("code", "canonical_solution", "solution")
"""Columns that may hold code as an answer, first match wins; with `--task code` those of `instruct`, too."""
_TESTED = ("test", "tests", "test_list", "entry_point", "language")
"""Columns beside a solution that show it to be code."""


@dataclass(frozen=True)
class Code(Task):
    """`{"code": ...}` alone as raw text, every token of which trains; with a prompt the answer to it, which alone trains.

    What else a row says is kept in `meta`: `language`, and `test` with `entry_point` or `tests`, which metrics read.

    With `fim_rate` above 0 all rows are raw text, and that share of them is cut at two random places and written as prefix,
    suffix, middle behind the three sentinels (PSM of Bavarian et al. 2022, arXiv:2207.14255, section 3), so that the middle
    comes last and is predicted from both sides. Which rows and which places depends on the text alone.
    """

    name: ClassVar[str] = "code"
    precedence: ClassVar[int] = 5
    makes: ClassVar[tuple[type[Example], ...]] = (Conversation, Text)
    metrics: ClassVar[tuple[str, ...]] = ("code_exact_match", "edit_similarity", "syntax_valid")
    columns_help: ClassVar[str] = "code, or instruction (prompt, question, text) and code (canonical_solution, solution)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"code": "def one():\n    return 1\n"},
        {"code": "print('two')\n", "language": "python"},
        {"instruction": "Print the sum.", "input": "1 2", "code": "print(3)\n"},
        {
            "prompt": "def four():\n",
            "canonical_solution": "    return 4\n",
            "test": "assert four() == 4",
            "entry_point": "four",
        },
    )
    """Rows as the task reads them."""

    raw: bool = False
    """Train the column `code` as raw text where a row has a prompt, too."""
    system: str | None = None
    """System turn put before every prompt; None: none."""
    fim_rate: float = 0.0
    """Share of rows that are rearranged for filling in the middle, 0 to 1."""
    fim_prefix: str = "<|fim_prefix|>"
    """The model's sentinel before the text above the gap (here and below as Qwen Coder has them)."""
    fim_suffix: str = "<|fim_suffix|>"
    """The model's sentinel before the text below the gap."""
    fim_middle: str = "<|fim_middle|>"
    """The model's sentinel before what fills the gap."""

    def __post_init__(self) -> None:
        if not 0 <= self.fim_rate <= 1:
            raise UsageError(f"Expected --task.fim_rate to be a share from 0 to 1; got {self.fim_rate}.")

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a `code` column, or with a prompt and a solution that is code."""
        if "code" in columns or _question(columns) is None:
            return "code" in columns
        return "canonical_solution" in columns or ("solution" in columns and first_of(_TESTED, columns) is not None)

    def format(self, row: Mapping[str, Any]) -> Conversation | Text:
        """The code of a row, or its rearrangement, or prompt and code as a conversation."""
        question = _question(row)
        if self.raw or self.fim_rate > 0 or question is None:
            return self._text(row)
        column = first_of((*CODES, *ANSWERS), row)
        if column is None:
            raise ValueError(f"expected a column '{CODES[0]}' (or {', '.join(CODES[1:])}), got {', '.join(row) or 'none'}")
        user, read = asked(row, question)
        turns = (Message("system", self.system),) if self.system else ()
        meta = {key: value for key, value in row.items() if key not in read | {column}}
        return Conversation((*turns, user, Message("assistant", text_of(row, column, answer=True))), meta=meta)

    def _text(self, row: Mapping[str, Any]) -> Text:
        code = text_of(row, "code", answer=True)
        meta = {key: value for key, value in row.items() if key != "code"}
        draw = random.Random(hashlib.sha256(code.encode("utf-8", "surrogatepass")).digest())
        if draw.random() >= self.fim_rate:
            return Text(code, meta)
        first, second = sorted(draw.randint(0, len(code)) for _ in range(2))
        above, gap, below = code[:first], code[first:second], code[second:]
        return Text(f"{self.fim_prefix}{above}{self.fim_suffix}{below}{self.fim_middle}{gap}", meta)


def _question(columns: Container[str]) -> str | None:
    """The column that holds a prompt, if there is one; `text` is one beside code."""
    return first_of((*QUESTIONS, "text"), columns)
