"""Files that were already written in one of the text templates: split back into turns, so that only answers train."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.task import Task
from lightning_ft.types import Conversation, Message
from lightning_ft_tasks.instruct import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALPACA = re.compile(r"^### (Instruction|Input|Response):[ \t]*\n?", re.MULTILINE)
_TAGS = re.compile(r"<(system|instruction|input|response)>(.*?)</\1>", re.DOTALL)
_PREAMBLE = re.compile(r"^Below is an instruction that describes a task\b.*?(?=\n\n|\Z)", re.DOTALL)
_ENDS = re.compile(r"(</s>|<\|endoftext\|>|<\|im_end\|>|<\|eot_id\|>|<eos>)\s*\Z")


@dataclass(frozen=True)
class Templated(Task):
    """`{"text": ...}` with the turns in it, one or several.

    The layout is that of `alpaca` (`### Instruction:`, `### Input:`, `### Response:`) or of `tags` (`<instruction>`,
    `<input>`, `<response>`). The turns are rendered again by the run's own template. A leading "Below is an instruction
    ..." and an end-of-text token are the layout's, not the text's. Never chosen by `--task auto`, where a column `text` is
    raw text.
    """

    name: ClassVar[str] = "templated"
    precedence: ClassVar[int] = -20
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "rougeL")
    columns_help: ClassVar[str] = "text (in the layout alpaca or tags)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"text": "### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Response:\nParis</s>"},
        {"text": "<instruction>Name the capital.</instruction>\n<input>France</input>\n<response>Paris</response>", "id": 3},
    )
    """Rows as the task reads them."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a `text` column and no label."""
        return "text" in columns and not columns & {"label", "category", "intent"}

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The turns of a row."""
        text = text_of(row, "text")
        parts = _tagged(text) if "<response>" in text else _headed(text)
        messages = tuple(_turns(parts))
        if not any(m.role == "assistant" for m in messages) or messages[0].role == "assistant":
            raise ValueError(
                "expected 'text' to hold '### Instruction:' and '### Response:' (or <instruction> and <response>), got "
                f"{text.strip()[:60]!r}; name --task text for raw text"
            )
        return Conversation(messages, meta={key: value for key, value in row.items() if key != "text"})


def _headed(text: str) -> list[tuple[str, str]]:
    """The parts below `### ...:` headings, with what stands before the first as the system's."""
    marks = list(_ALPACA.finditer(text))
    if not marks:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    system = _PREAMBLE.sub("", text[: marks[0].start()]).strip()
    parts = [(mark[1].lower(), _ENDS.sub("", text[mark.end() : end].strip())) for mark, end in zip(marks, ends, strict=True)]
    return [("system", system), *parts] if system else parts


def _tagged(text: str) -> list[tuple[str, str]]:
    """The parts within tags.

    Raises:
        ValueError: text between the parts, which would be lost.
    """
    parts, at = [], 0
    for found in _TAGS.finditer(text):
        _nothing(text[at : found.start()])
        parts.append((found[1], found[2]))
        at = found.end()
    _nothing(_ENDS.sub("", text[at:]))
    return parts


def _nothing(between: str) -> None:
    if between.strip() and not _ENDS.fullmatch(between.strip()):
        raise ValueError(f"expected nothing between the tagged parts, got {between.strip()[:60]!r}")


def _turns(parts: list[tuple[str, str]]) -> list[Message]:
    """Messages of parts; an input belongs to the instruction above it."""
    messages: list[Message] = []
    for kind, body in parts:
        if kind == "system":
            messages.append(Message("system", body))
        elif kind == "instruction":
            messages.append(Message("user", body, extra={"instruction": body, "input": ""}))
        elif kind == "response":
            messages.append(Message("assistant", body))
        elif messages and messages[-1].role == "user":
            question = str(messages[-1].extra["instruction"])
            content = f"{question}\n\n{body}" if body else question
            messages[-1] = Message("user", content, extra={"instruction": question, "input": body})
        else:
            raise ValueError("expected an input below its instruction, got it first")
    return messages
