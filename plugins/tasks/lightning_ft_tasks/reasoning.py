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
MARK = "####"
"""What GSM8K writes between the reasoning and the answer."""
PREFIX = "Answer: "
"""What stands before the answer where the user does not say otherwise."""
PREFIX_KEY = "answer_prefix"
"""Where a row's `meta` tells metrics of another one."""


@dataclass(frozen=True)
class Reasoning(Instruct):
    """A question, the reasoning and the answer, both trained, in this order in one assistant turn.

    `style` says how the turn is written: `text` puts the reasoning first and `Answer: ...` below it; `think` encloses the
    reasoning in `<think>` tags. A row without reasoning whose answer has a `####` (GSM8K) is split there.
    """

    name: ClassVar[str] = "reasoning"
    precedence: ClassVar[int] = 20
    metrics: ClassVar[tuple[str, ...]] = ("final_answer", "rougeL")
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
    answer_prefix: str = PREFIX
    """What stands before the answer in the style `text`; `"#### "` trains GSM8K's answers as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.style not in ("text", "think"):
            raise UsageError(f"Expected --task.style to be text or think; got {self.style!r}.")

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a question, its reasoning and its answer."""
        return all(first_of(names, columns) is not None for names in (QUESTIONS, REASONINGS, ANSWERS))

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation whose answer shows the way to it."""
        row, column = self._split(row)
        reasoning = text_of(row, column, answer=True)
        plain = super().format(row)
        *before, answer = plain.messages
        meta = {key: value for key, value in plain.meta.items() if key != column}
        if self.style == "think":
            content = f"<think>\n{reasoning}\n</think>\n\n{answer.content}"
        else:
            content = f"{reasoning}\n\n{self.answer_prefix}{answer.content}"
            if self.answer_prefix != PREFIX:
                meta[PREFIX_KEY] = self.answer_prefix
        return Conversation((*before, Message("assistant", content)), plain.tools, meta)

    def _split(self, row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """The row with its reasoning in a column of its own, and the name of that."""
        column = self.reasoning_column or first_of(REASONINGS, row)
        if column is not None:
            return row, column
        name = self.answer_column or first_of(ANSWERS, row)
        whole = row.get(name) if name is not None else None
        if name is None or not isinstance(whole, str) or MARK not in whole:
            raise ValueError(
                f"expected a column '{REASONINGS[0]}' (or {', '.join(REASONINGS[1:])}), or '{MARK}' between the reasoning and"
                f" the answer in '{name or ANSWERS[0]}', got {', '.join(row) or 'none'}"
            )
        reasoning, _, answer = whole.rpartition(MARK)
        return {**row, REASONINGS[0]: reasoning.strip(), name: answer.strip()}, REASONINGS[0]
