"""Instructions that say how the answer must look, so that it can be checked without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft_tasks.constraints import ARGUMENTS, IDS, OWN
from lightning_ft_tasks.instruct import ANSWERS, QUESTIONS, Instruct, first_of
from lightning_ft_tasks.unanswered import answered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.types import Conversation


@dataclass(frozen=True)
class Constrained(Instruct):
    """Rows of `instruct` with `constraints`, or with IFEval's `instruction_id_list` and `kwargs`; the answer may be missing.

    The constraints stay in `meta`, where the metrics `adherence` and `completion` read them. A row without an answer cannot
    train, but the model can be asked it.
    """

    name: ClassVar[str] = "constrained"
    precedence: ClassVar[int] = 25
    metrics: ClassVar[tuple[str, ...]] = ("adherence", "completion")
    columns_help: ClassVar[str] = (
        "prompt (instruction, question), constraints (or instruction_id_list and kwargs), output (response; optional)"
    )
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"prompt": "Say hello in capital letters.", "response": "HELLO", "constraints": [{"type": "upper_case"}]},
        {
            "prompt": "Name a colour without commas.",
            "response": "Blue.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"relation": "less than", "num_words": 5}],
        },
    )
    """Rows as the task reads them."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a question and constraints."""
        return first_of(QUESTIONS, columns) is not None and (OWN in columns or columns >= {IDS, ARGUMENTS})

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation of (system,) (shots,) user and assistant; without an answer the last turn is empty."""
        return answered(super().format, row, self.answer_column or first_of(ANSWERS, row))
