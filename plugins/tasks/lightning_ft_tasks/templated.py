"""Files that were already written in one of the text templates: split back into turns, so that only answers train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning_ft.errors import RefusedRowError
from lightning_ft.task import Task
from lightning_ft.types import Conversation, Message
from lightning_ft_tasks.instruct import text_of
from lightning_ft_tasks.layouts import LAYOUTS, layout_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Templated(Task):
    """`{"text": ...}` with the turns in it, one or several, which the run's own template renders again.

    The layout is that of `alpaca` (`### Instruction:`, `### Input:`, `### Response:`), of `tags` (`<instruction>`,
    `<input>`, `<response>`), ChatML, Llama 2 or 3, Gemma, Zephyr, Vicuna, or `### Human:` and `### Assistant:`. A
    leading "Below is an instruction ..." and first and last tokens of a text are the layout's, not the text's.
    """

    name: ClassVar[str] = "templated"
    precedence: ClassVar[int] = 3
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "rougeL")
    columns_help: ClassVar[str] = "text (in a layout such as alpaca, tags or ChatML)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"text": "### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Response:\nParis</s>"},
        {"text": "<instruction>Name the capital.</instruction>\n<input>France</input>\n<response>Paris</response>", "id": 3},
        {"text": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"},
    )
    """Rows as the task reads them."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a `text` column."""
        return "text" in columns

    @classmethod
    def recognizes(cls, row: Mapping[str, Any]) -> bool:
        """A text with a user's and an assistant's part in one of the layouts."""
        return isinstance(text := row.get("text"), str) and layout_of(text) is not None

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The turns of a row."""
        text = text_of(row, "text")
        layout = layout_of(text)
        if layout is None:
            raise ValueError(
                f"expected 'text' in one of the layouts {', '.join(layout.name for layout in LAYOUTS)}, with a turn of the user"
                f" and one of the assistant, got {text.strip()[:60]!r}; name --task text for raw text"
            )
        messages = tuple(_turns(parts_of(text, layout)))
        if next(message.role for message in messages if message.role != "system") != "user":
            raise ValueError("expected a turn of the user before the first one of the assistant, got none")
        empty = next((m.role for m in messages if m.role != "system" and not m.content.strip()), None)
        if empty is not None:
            kind: Literal["empty_prompt", "empty_answer"] = "empty_answer" if empty == "assistant" else "empty_prompt"
            raise RefusedRowError(f"expected text in every turn, got none in one of the {empty}", kind)
        return Conversation(messages, meta={key: value for key, value in row.items() if key != "text"})


def _turns(parts: list[tuple[str, str]]) -> list[Message]:
    """Messages of parts; an input belongs to the instruction above it."""
    messages: list[Message] = []
    for role, body in parts:
        if role == "user":
            messages.append(Message("user", body, extra={"instruction": body, "input": ""}))
        elif role != "input":
            messages.append(Message(role, body))
        elif messages and messages[-1].role == "user" and not messages[-1].extra["input"]:
            question = str(messages[-1].extra["instruction"])
            content = f"{question}\n\n{body}" if body else question
            messages[-1] = Message("user", content, extra={"instruction": question, "input": body})
        else:
            raise ValueError("expected one input below each instruction, got one without it or a second one")
    return messages
