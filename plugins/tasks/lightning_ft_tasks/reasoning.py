"""Answers with the way to them: instruction, reasoning, answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning_ft.errors import UsageError
from lightning_ft.types import Conversation, Message
from lightning_ft_tasks.instruct import ANSWERS, QUESTIONS, Instruct, first_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

REASONINGS = ("reasoning", "rationale", "chain_of_thought", "cot", "thinking", "explanation")
"""Columns that may hold the reasoning, first match wins."""


@dataclass(frozen=True)
class Reasoning(Instruct):
    """A question, the reasoning and the answer, both trained, in this order in one assistant turn.

    `style` says how the turn is written: `text` puts the reasoning first and `Answer: ...` below it; `think` encloses the
    reasoning in `<think>` tags.
    """

    name: ClassVar[str] = "reasoning"
    precedence: ClassVar[int] = 20
    metrics: ClassVar[tuple[str, ...]] = ("rougeL",)
    columns_help: ClassVar[str] = "instruction (question), reasoning (rationale, chain_of_thought, thinking), answer (output)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"question": "3 apples and 2 more?", "reasoning": "3 + 2 = 5.", "answer": "5"},
        {"instruction": "Is 9 prime?", "input": "", "rationale": "9 = 3 * 3.", "output": "No."},
    )
    """Rows as the task reads them."""

    style: Literal["text", "think"] = "text"
    """How reasoning and answer are put into the turn."""
    reasoning_column: str | None = None
    """Column that holds the reasoning; None: the first of reasoning, rationale, chain_of_thought, cot, thinking ..."""
    answer_prefix: str = "Answer: "
    """What stands before the answer in the style `text`."""

    def __post_init__(self) -> None:
        if self.style not in ("text", "think"):
            raise UsageError(f"Expected --task.style to be text or think; got {self.style!r}.")

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a question, its reasoning and its answer."""
        return all(first_of(names, columns) is not None for names in (QUESTIONS, REASONINGS, ANSWERS))

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation whose answer shows the way to it."""
        column = self.reasoning_column or first_of(REASONINGS, row)
        if column is None:
            raise ValueError(
                f"expected a column '{REASONINGS[0]}' (or {', '.join(REASONINGS[1:])}), got {', '.join(row) or 'none'}"
            )
        reasoning = text_of(row, column)
        plain = super().format(row)
        *before, answer = plain.messages
        if self.style == "think":
            content = f"<think>\n{reasoning}\n</think>\n\n{answer.content}"
        else:
            content = f"{reasoning}\n\n{self.answer_prefix}{answer.content}"
        meta = {key: value for key, value in plain.meta.items() if key != column}
        return Conversation((*before, Message("assistant", content)), plain.tools, meta)
