"""Examples as rows of another format, if that format can hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_ft.errors import DataError, UsageError
from lightning_ft.types import Classified, Conversation, Message, Preference, Text, Unpaired

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_ft.types import Example

_SHAREGPT = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}


class CannotHoldError(ValueError):
    """The format has no place for something in the example."""


def _turn(message: Message) -> dict[str, Any]:
    further = {key: value for key, value in message.extra.items() if key not in ("instruction", "input")}
    weight = {} if message.weight is None else {"weight": message.weight}
    return {"role": message.role, "content": message.content, **further, **weight}


def _conversation(example: Example) -> Conversation:
    if isinstance(example, Conversation):
        return example
    if isinstance(example, Classified):
        return Conversation((Message("user", example.text), Message("assistant", example.label)))
    raise CannotHoldError(f"a {type(example).__name__.lower()} is no conversation")


def _pair(example: Example) -> tuple[str, str, str]:
    """System text, question and answer of a conversation of one question."""
    chat = _conversation(example)
    turns = [message for message in chat.messages if message.role != "system"]
    if chat.tools or [message.role for message in turns] != ["user", "assistant"]:
        raise CannotHoldError(
            f"it has {'tools' if chat.tools else f'{len(turns)} turns'}, the format one question and one answer"
        )
    if any(message.weight is not None or set(message.extra) - {"instruction", "input"} for message in turns):
        raise CannotHoldError("a turn has a loss weight or further keys")
    system = next((message.content for message in chat.messages if message.role == "system"), "")
    return system, turns[0].content, turns[1].content


def _with_system(system: str, row: dict[str, Any]) -> dict[str, Any]:
    return row | ({"system": system} if system else {})


def messages(example: Example) -> dict[str, Any]:
    """`messages` with role and content, and `tools`."""
    chat = _conversation(example)
    tools = {"tools": [dict(tool) for tool in chat.tools]} if chat.tools else {}
    return {"messages": [_turn(message) for message in chat.messages], **tools}


def sharegpt(example: Example) -> dict[str, Any]:
    """`conversations` with from and value."""
    chat = _conversation(example)
    if chat.tools or any(m.weight is not None or set(m.extra) - {"instruction", "input"} for m in chat.messages):
        raise CannotHoldError("it has tools, loss weights or further keys of turns")
    return {"conversations": [{"from": _SHAREGPT[m.role], "value": m.content} for m in chat.messages]}


def alpaca(example: Example) -> dict[str, Any]:
    """`instruction`, `input` and `output`."""
    system, question, answer = _pair(example)
    user = next(message for message in _conversation(example).messages if message.role == "user")
    parts = {"instruction": user.extra.get("instruction", question), "input": user.extra.get("input", "")}
    return _with_system(system, {**parts, "output": answer})


def prompt_response(example: Example) -> dict[str, Any]:
    """`prompt` and `response`."""
    system, question, answer = _pair(example)
    return _with_system(system, {"prompt": question, "response": answer})


def question_answer(example: Example) -> dict[str, Any]:
    """`question` and `answer`."""
    system, question, answer = _pair(example)
    return _with_system(system, {"question": question, "answer": answer})


def text(example: Example) -> dict[str, Any]:
    """`text`."""
    if not isinstance(example, Text):
        raise CannotHoldError("only raw text has no turns")
    return {"text": example.text}


def preference(example: Example) -> dict[str, Any]:
    """`messages`, `chosen` and `rejected`."""
    if not isinstance(example, Preference):
        raise CannotHoldError("it has no second answer")
    better, worse = ([_turn(message) for message in part] for part in (example.chosen, example.rejected))
    return {"messages": [_turn(message) for message in example.prompt], "chosen": better, "rejected": worse}


def unpaired(example: Example) -> dict[str, Any]:
    """`messages` with the answer last, and `label`."""
    if not isinstance(example, Unpaired):
        raise CannotHoldError("nobody said whether its answer was liked")
    return {"messages": [_turn(message) for message in (*example.prompt, *example.completion)], "label": example.desirable}


def classify(example: Example) -> dict[str, Any]:
    """`text` and `label`."""
    if not isinstance(example, Classified):
        raise CannotHoldError("it has no class")
    return {"text": example.text, "label": example.label}


FORMATS: Mapping[str, Callable[[Example], dict[str, Any]]] = {
    made.__name__: made
    for made in (messages, sharegpt, alpaca, prompt_response, question_answer, text, preference, unpaired, classify)
}
"""Each format by its name."""


def convert(
    names: Sequence[str], to: str, *, task: str | None = None, columns: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The examples of files as rows of a format; further columns of a row stay with it.

    Args:
        names: files, globs and folders.
        to: a name of `FORMATS`.
        task: by name, or None to let the columns decide.
        columns: as for `fit`.

    Raises:
        DataError: rows cannot be read or formatted, or the format cannot hold one of them; the message has its place.
        UsageError: an unknown format.
    """
    from lightning_ft.errors import did_you_mean
    from lightning_ft_datatools.reading import read

    if to not in FORMATS:
        raise UsageError(f"Expected --to to be one of {', '.join(FORMATS)}; got '{to}'.{did_you_mean(to, FORMATS)}")
    reading = read(names, task, columns or {})
    return [as_row(example, to, row.id) for row, example in reading.examples(reading.rows)]


def _same(value: Any, made: Any) -> bool:
    """Whether nothing of a column is lost with another in its place."""
    return value is None or value == made or (isinstance(value, str) and not value.strip())


def as_row(example: Example, to: str, place: str) -> dict[str, Any]:
    """One example in a format.

    Raises:
        DataError: the format cannot hold it.
    """
    try:
        made = FORMATS[to](example)
        lost = next((key for key, value in example.meta.items() if key in made and not _same(value, made[key])), None)
        if lost is not None:
            raise CannotHoldError(f"its further column '{lost}' would be written over")
    except CannotHoldError as error:
        raise DataError(f"{place}: the format {to} cannot hold this row, because {error}; choose another --to.") from None
    return {**{key: value for key, value in example.meta.items() if key not in made}, **made}
