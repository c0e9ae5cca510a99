"""Conversations of any length, as OpenAI's and ShareGPT's files have them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lightning_ft.builtin import message
from lightning_ft.errors import RefusedRowError, UsageError, json_name
from lightning_ft.task import Task
from lightning_ft.types import Conversation, Message

COLUMNS = ("messages", "conversations", "conversation")
"""Columns that may hold the turns, first match wins."""


@dataclass(frozen=True)
class Chat(Task):
    """Turns of users, assistants and tools; every assistant turn is trained (its `weight` key says otherwise).

    Turns are `{"role", "content"}` or ShareGPT's `{"from", "value"}`. A `tools` column (a list of JSON schemas, or that
    list as JSON text) is shown to the model by the template. A system turn stands first: the row's own, else its
    `system` column, else the option. Further columns are kept in `meta`.
    """

    name: ClassVar[str] = "chat"
    precedence: ClassVar[int] = 50
    metrics: ClassVar[tuple[str, ...]] = (
        "exact_match", "rougeL", "token_f1", "coherence", "coherence_margin", "flow", "distinct_1", "distinct_2", "self_bleu",
        "answer_length",
    )  # fmt: skip
    columns_help: ClassVar[str] = "messages (role, content) or conversations (from, value), tools and system (optional)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}], "id": 7},
        {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}], "system": "Be brief."},
        {
            "conversations": [
                {"from": "human", "value": "Time?"},
                {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
                {"from": "observation", "value": "noon"},
                {"from": "gpt", "value": "It is noon."},
            ],
            "tools": '[{"name": "clock", "parameters": {}}]',
        },
    )
    """Rows as the task reads them."""

    system: str | None = None
    """System turn put before every conversation that brings none; None: none."""
    train: Literal["all", "last"] = "all"
    """Which assistant turns train: all, or only the last one of each conversation."""

    def __post_init__(self) -> None:
        if self.train not in ("all", "last"):
            raise UsageError(f"Expected --task.train to be all or last; got {self.train!r}.")

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a column of turns; those with two answers to choose between are a preference task's."""
        return not columns.isdisjoint(COLUMNS) and not columns >= {"chosen", "rejected"}

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The conversation of a row."""
        column = next((name for name in COLUMNS if row.get(name) is not None), None)
        if column is None:
            raise ValueError(f"expected a column 'messages' or 'conversations', got {', '.join(row) or 'none'}")
        messages = self._with_system(turns_of(row[column], column), row)
        _check_order(messages, column)
        if self.train == "last":
            last = max(i for i, m in enumerate(messages) if m.role == "assistant")
            messages = [m if i == last or m.role != "assistant" else _untrained(m) for i, m in enumerate(messages)]
        meta = {k: v for k, v in row.items() if k not in {column, "tools", "system"}}
        return Conversation(tuple(messages), _tools(row.get("tools")), meta)

    def _with_system(self, messages: list[Message], row: Mapping[str, Any]) -> list[Message]:
        column = row.get("system")
        if column is not None and not isinstance(column, str):
            raise ValueError(f"expected 'system' to be text, got {json_name(column)}")
        if messages[0].role == "system" or not (column or self.system):
            return messages
        return [Message("system", column or self.system or ""), *messages]


def turns_of(value: Any, column: str) -> list[Message]:
    """The turns in a column.

    Raises:
        ValueError: no list, an empty one, or a wrong turn; says which.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected '{column}' to be a list of turns, got {json_name(value)}")
    return [turn_of(turn, column, number) for number, turn in enumerate(value, 1)]


def turn_of(turn: Any, column: str, number: int) -> Message:
    """One turn; a ShareGPT `function_call` is the assistant's.

    Raises:
        ValueError: it is no turn; says which.
    """
    sharegpt = isinstance(turn, Mapping) and "from" in turn
    keys = ("from", "value") if sharegpt else ("role", "content")
    if isinstance(turn, Mapping) and turn.get(keys[0]) == "function_call":
        turn = {**turn, keys[0]: "assistant"}
    try:
        return message(turn, role_key=keys[0], content_key=keys[1])
    except ValueError as error:
        raise ValueError(f"'{column}', turn {number}: {error}") from None


def _check_order(messages: list[Message], column: str) -> None:
    """The order that chat templates can render: system first, something to answer, an answer to learn."""
    for number, turn in enumerate(messages):
        if turn.role == "system" and number:
            raise RefusedRowError(
                f"expected the system turn of '{column}' to be the first, got it as turn {number + 1}", "turns"
            )
        if turn.role == "tool" and not any(m.role == "assistant" for m in messages[:number]):
            raise RefusedRowError(
                f"expected an assistant turn of '{column}' before a tool's answer, got the tool first", "turns"
            )
    if not any(m.role == "assistant" and (m.content.strip() or m.extra.get("tool_calls")) for m in messages):
        roles = ", ".join(m.role for m in messages)
        raise RefusedRowError(
            f"expected '{column}' to have at least one assistant turn with text, got turns of {roles}", "empty_answer"
        )


def _untrained(turn: Message) -> Message:
    return dataclasses.replace(turn, weight=0.0)


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Tool schemas from a list or from its JSON text."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected 'tools' to be a list or its JSON text, got no JSON ({error.msg})") from None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise ValueError(f"expected 'tools' to be a list of objects, got {value!r:.80}")
    return tuple(value)
