"""Rows as the checks look at them: what is asked, what is answered, by whom, and where it stands."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning_ft.types import Classified, Conversation, Message, Preference, Text, Unpaired

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import Example, Row

AUGMENTED = "augmented"
"""Column of a further row that says from which row, and how, `data augment` made it."""


@dataclass(frozen=True)
class Record:
    """One example with its row."""

    row: Row
    example: Example
    split: str | None = None
    """The split that its row or its file names."""

    @property
    def id(self) -> str:
        """`file:line`, with `#part` where a row stands for several."""
        return self.row.id

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """The turns; of a pair those with the better answer."""
        example = self.example
        if isinstance(example, Conversation):
            return example.messages
        if isinstance(example, Preference):
            return (*example.prompt, *example.chosen)
        if isinstance(example, Unpaired):
            return (*example.prompt, *example.completion)
        if isinstance(example, Classified):
            return (Message("user", example.text), Message("assistant", example.label))
        return (Message("assistant", example.text),)

    @cached_property
    def answer(self) -> str:
        """What the model last learns to write: the last assistant turn, the class, or the whole text."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")

    @cached_property
    def question(self) -> str:
        """The user turn before the answer, where people put what makes this row different; empty for raw text."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @cached_property
    def prompt(self) -> str:
        """All that stands before the answer, without a system text, which many rows share."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return "\n".join(m.content for m in self.messages[:last] if m.role != "system")

    @property
    def label(self) -> str | None:
        """The class, if the row has one."""
        return self.example.label if isinstance(self.example, Classified) else None

    @property
    def is_raw(self) -> bool:
        """Whether it is text without a question."""
        return isinstance(self.example, Text)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Every text of the example."""
        rejected = self.example.rejected if isinstance(self.example, Preference) else ()
        return tuple(m.content for m in (*self.messages, *rejected))

    @cached_property
    def beside(self) -> str:
        """What turns hold beside their texts (calls of tools), and the tools that there are; empty where there is nothing."""
        calls = [{key: value for key, value in m.extra.items() if key not in ("instruction", "input")} for m in self.messages]
        tools = self.example.tools if isinstance(self.example, Conversation) else ()
        return json.dumps([calls, tools], sort_keys=True, ensure_ascii=False, default=str) if any(calls) or tools else ""

    @cached_property
    def whole(self) -> str:
        """Everything that makes two rows the same."""
        parts = [*(f"{m.role}:{m.content}" for m in self.messages), *([self.beside] if self.beside else [])]
        if isinstance(self.example, Preference):
            parts += [f"rejected:{m.content}" for m in self.example.rejected]
        if isinstance(self.example, Unpaired):
            parts.append(f"liked:{self.example.desirable}")
        return "\n".join(parts)


def folded(text: str) -> str:
    """A text without what a reader would not call a difference: case, forms of characters, amounts of white space."""
    return " ".join(_plain(text).split())


def bare(text: str) -> str:
    """As `folded`, and without punctuation."""
    return " ".join(re.findall(r"\w+", _plain(text)))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def strings(value: Any) -> list[str]:
    """All strings within a row's values."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in strings(part)]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in strings(part)]
    return []


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Each count as its share of all, the largest first."""
    total = sum(counts.values()) or 1
    return {name: count / total for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def percentiles(numbers: Sequence[int], points: Sequence[int] = (50, 90, 95, 99, 100)) -> dict[str, int]:
    """The smallest number that so many per cent do not exceed."""
    ordered = sorted(numbers)
    return {f"p{point}": ordered[max(0, -(-point * len(ordered) // 100) - 1)] for point in points} if ordered else {}
