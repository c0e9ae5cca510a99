"""Where the user's words stand in a row, and the same row with others in their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.types import Classified, Conversation, Message, Preference, Unpaired

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lightning_ft.types import Example

    Path = tuple[str | int, ...]

_USERS = frozenset({"user", "human", "prompter"})
_TEXTS = ("content", "value", "text")
"""Keys of a turn, or of a part of one, that may hold its text."""
_ANSWERS = frozenset({
    "output", "response", "answer", "answers", "completion", "chosen", "rejected", "label", "category", "intent", "target",
    "solution", "canonical_solution", "reasoning", "references", "source", "split", "id", "group", "system",
})  # fmt: skip
"""Columns that are not what the user says, whatever text stands in them."""
_LAST = ("input", "context")
"""Columns that are the question only where no other is."""


@dataclass(frozen=True)
class Prompt:
    """The user's texts of a row, each once, and where they stand."""

    values: Mapping[str, Any]
    examples: Sequence[Example]
    places: Mapping[str, Sequence[Path]]
    """Of each text the paths to the strings that are it, or that hold it once."""

    @classmethod
    def of(cls, values: Mapping[str, Any], examples: Sequence[Example]) -> Prompt:
        """Find what the user says: in turns, in a column, or once within a column.

        Args:
            values: the columns of a row.
            examples: what the row stands for. Of a question with an input only the question counts.
        """
        asked = [message for example in examples for message in user_turns(example)]
        places: dict[str, list[Path]] = {}
        for path, text in (found for column, value in values.items() for found in _turns(value, (column,))):
            if text.strip() and any(text in message.content for message in asked):
                places.setdefault(text, []).append(path)
        if places:
            return cls(values, examples, places)
        for text in (str(message.extra.get("instruction", message.content)) for message in asked):
            if text.strip() and (column := _column(values, text)) is not None:
                places[text] = [(column,)]
        return cls(values, examples, places)

    @property
    def texts(self) -> tuple[str, ...]:
        """What the user says, in order; empty where it stands in no column as it is."""
        return tuple(self.places)

    def said(self, texts: Sequence[str]) -> dict[str, Any]:
        """The row with other words of the user.

        Args:
            texts: one for each of `texts`.
        """
        values = copy.deepcopy(dict(self.values))
        for (old, paths), new in zip(self.places.items(), texts, strict=True):
            for path in paths if new != old else ():
                _replace(values, path, old, new)
        return values

    def only_words_differ(self, examples: Sequence[Example]) -> bool:
        """Whether examples differ from those of the row in nothing but what the user says."""
        return [_frame(example) for example in examples] == [_frame(example) for example in self.examples]


def user_turns(example: Example) -> list[Message]:
    """The user's turns before the answers."""
    if isinstance(example, Classified):
        return [Message("user", example.text)]
    if isinstance(example, (Preference, Unpaired)):
        turns: Iterable[Message] = example.prompt
    else:
        turns = example.messages if isinstance(example, Conversation) else ()
    return [message for message in turns if message.role == "user"]


def _turns(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """The texts of user turns within a value."""
    if isinstance(value, Mapping):
        if any(isinstance(value.get(key), str) and value[key] in _USERS for key in ("role", "from")):
            for key in _TEXTS:
                yield from _strings(value.get(key), (*path, key))
        for key, part in value.items():
            yield from _turns(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _turns(part, (*path, number))


def _strings(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """A text, or the texts of its parts."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for number, part in enumerate(value):
            if isinstance(part, Mapping):
                for key in _TEXTS:
                    yield from _strings(part.get(key), (*path, number, key))
            else:
                yield from _strings(part, (*path, number))


def _column(values: Mapping[str, Any], text: str) -> str | None:
    """The column that is a text, else the first one that holds it once."""
    named = {key: value for key, value in values.items() if isinstance(value, str) and key not in _ANSWERS}
    order = sorted(named, key=_LAST.__contains__)
    whole = next((key for key in order if named[key] == text), None)
    return whole if whole is not None else next((key for key in order if named[key].count(text) == 1), None)


def _replace(values: Any, path: Path, old: str, new: str) -> None:
    *above, last = path
    for key in above:
        values = values[key]
    values[last] = new if values[last] == old else values[last].replace(old, new, 1)


def _frame(example: Example) -> Any:
    """All of an example but the user's words and what the task does not read."""
    if isinstance(example, Classified):
        return example.label
    if isinstance(example, Preference):
        return [_turn(m) for m in example.prompt], example.chosen, example.rejected
    if isinstance(example, Unpaired):
        return [_turn(m) for m in example.prompt], example.completion, example.desirable
    if isinstance(example, Conversation):
        return [_turn(m) for m in example.messages], example.tools
    return example.text


def _turn(message: Message) -> Any:
    if message.role != "user":
        return message
    return message.weight, {key: value for key, value in message.extra.items() if key != "instruction"}
