"""Source code as raw text, optionally rearranged so that the model learns to fill a gap."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.task import Task
from lightning_ft.types import Text
from lightning_ft_tasks.instruct import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Code(Task):
    """`{"code": ...}`; every token trains.

    With `fim_rate` above 0, that share of the rows is cut at two random places and written as prefix, suffix, middle
    behind the three sentinels (PSM of Bavarian et al. 2022, arXiv:2207.14255, section 3), so that the middle comes last
    and is predicted from both sides. Which rows and which places depends on the text alone.
    """

    name: ClassVar[str] = "code"
    precedence: ClassVar[int] = 5
    makes: ClassVar[type[Text]] = Text
    columns_help: ClassVar[str] = "code"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"code": "def one():\n    return 1\n"},
        {"code": "print('two')\n", "language": "python"},
    )
    """Rows as the task reads them."""

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
        """Rows with a `code` column."""
        return "code" in columns

    def format(self, row: Mapping[str, Any]) -> Text:
        """The code of a row, or its rearrangement."""
        code = text_of(row, "code")
        meta = {key: value for key, value in row.items() if key != "code"}
        draw = random.Random(hashlib.sha256(code.encode("utf-8", "surrogatepass")).digest())
        if draw.random() >= self.fim_rate:
            return Text(code, meta)
        first, second = sorted(draw.randint(0, len(code)) for _ in range(2))
        above, gap, below = code[:first], code[first:second], code[second:]
        return Text(f"{self.fim_prefix}{above}{self.fim_suffix}{below}{self.fim_middle}{gap}", meta)
