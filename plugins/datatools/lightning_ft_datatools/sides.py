"""The texts that an example is to a model: one, or two where answers are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from lightning_ft.types import Classified, Conversation, Preference, Text, Unpaired

if TYPE_CHECKING:
    from lightning_ft.types import Example, Message


class Side(NamedTuple):
    """One text of an example."""

    name: str
    """What sets it apart, such as `chosen`; empty where there is nothing to tell."""
    example: Conversation | Text


def sides(example: Example) -> tuple[Side, ...]:
    """The texts of an example, the better answer first. Of a compared or judged answer only that answer has a loss."""
    if isinstance(example, Preference):
        return (
            Side("chosen", _answered(example.prompt, example.chosen)),
            Side("rejected", _answered(example.prompt, example.rejected)),
        )
    if isinstance(example, Unpaired):
        return (Side("liked" if example.desirable else "not liked", _answered(example.prompt, example.completion)),)
    if isinstance(example, Classified):
        return (Side(f"class {example.label}", example.as_conversation()),)
    return (Side("", example),)


def _answered(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> Conversation:
    return Conversation((*(replace(turn, weight=0.0) for turn in prompt), *answer))
