"""The core's own method, objective and tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import json_name, json_name_of
from lightning_ft.method import Method
from lightning_ft.objective import Objective
from lightning_ft.task import Task
from lightning_ft.types import Conversation, Example, LossOutput, LossTerm, Message, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from lightning_ft.types import Batch


@dataclass(frozen=True)
class Full(Method):
    """All weights train."""

    name: ClassVar[str] = "full"
    quickstart: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3, "epochs": 10.0}
    default: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True
    can_shard: ClassVar[bool] = True

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model itself, everything trainable."""
        model.requires_grad_(True)
        return model

    def training_tokens(self, tokens: Sequence[int]) -> Method:
        """The method itself: every row trains."""
        return self


@dataclass(frozen=True)
class SFT(Objective):
    """Negative log-likelihood of the supervised tokens, `-sum_t w_t log p(y_t | y_<t, x) / sum_t w_t`."""

    name: ClassVar[str] = "sft"
    default: ClassVar[bool] = True

    def __call__(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        """One term, counted in supervised tokens."""
        from lightning_ft.engine.loss import token_loss

        total, count = token_loss(model, batch, label_smoothing)
        return LossOutput({"nll": LossTerm(total, count)})


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant",
         "system": "system", "tool": "tool", "observation": "tool", "function": "tool"}  # fmt: skip
"""Spellings of roles in public files, and the template's word for them."""


WEIGHTS = ("weight", "loss_weight")
"""Keys of a turn that may hold the loss weight of its tokens."""


def message(turn: Any, *, role_key: str = "role", content_key: str = "content") -> Message:
    """A checked message from one turn of a row.

    Raises:
        ValueError: the turn is no object, or role or content is missing or of a wrong type.
    """
    if not isinstance(turn, Mapping):
        raise ValueError(f"expected each turn to be an object with '{role_key}' and '{content_key}', got {json_name(turn)}")
    role, content = turn.get(role_key), turn.get(content_key)
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"expected '{role_key}' to be one of {', '.join(ROLES)}, got {role!r}")
    if content is None and turn.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        content = _joined(content, content_key)
    if not isinstance(content, str):
        raise ValueError(f"expected '{content_key}' to be text, got {json_name_of(turn, content_key)}")
    weight = next((turn[key] for key in WEIGHTS if turn.get(key) is not None), None)
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf):
        raise ValueError(f"expected 'weight' to be a number of at least 0, got {weight!r}")
    extra = {k: v for k, v in turn.items() if k not in {role_key, content_key, *WEIGHTS}}
    return Message(ROLES[role], content, None if weight is None else float(weight), extra)


def _joined(parts: list[Any], key: str) -> str:
    """The text of a content in parts, as OpenAI (`text`) and LLaMA-Factory (`value`) write them.

    Raises:
        ValueError: a part is no text (an image, a sound).
    """
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else part
        if kind not in (None, "text") or not isinstance(text, str):
            got = f"a part of type {kind}" if kind not in (None, "text") else f"{text!r} as the text of a part"
            raise ValueError(f"expected '{key}' to be text or a list of text parts, got {got}")
        texts.append(text)
    return "".join(texts)


@dataclass(frozen=True)
class Messages(Task):
    """Conversations as `{"messages": [{"role", "content"}, ...]}`."""

    name: ClassVar[str] = "messages"
    precedence: ClassVar[int] = -10
    columns_help: ClassVar[str] = "messages"

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a `messages` column."""
        return "messages" in columns

    def format(self, row: Mapping[str, Any]) -> Example:
        """The conversation of a row."""
        turns = row.get("messages")
        if not isinstance(turns, list) or not turns:
            raise ValueError(f"expected 'messages' to be a list of turns, got {json_name_of(row, 'messages')}")
        tools = row.get("tools") or []
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError(f"expected 'tools' to be a list of objects, got {tools!r:.80}")
        meta = {k: v for k, v in row.items() if k not in {"messages", "tools"}}
        return Conversation(tuple(message(turn) for turn in turns), tuple(tools), meta)


@dataclass(frozen=True)
class RawText(Task):
    """Plain text as `{"text": ...}`; every token is trained."""

    name: ClassVar[str] = "text"
    precedence: ClassVar[int] = -10
    makes: ClassVar[type[Example]] = Text
    columns_help: ClassVar[str] = "text"

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a `text` column and no label."""
        return "text" in columns and not columns & {"label", "category", "intent"}

    def format(self, row: Mapping[str, Any]) -> Example:
        """The text of a row."""
        text = row.get("text")
        if not isinstance(text, str):
            raise ValueError(f"expected 'text' to be text, got {json_name_of(row, 'text')}")
        return Text(text, {k: v for k, v in row.items() if k != "text"})
