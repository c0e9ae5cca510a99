"""The layouts in which people write conversations into one text, and the way back to turns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROLES = {
    "instruction": "user", "human": "user", "prompter": "user", "[INST]": "user", "<</SYS>>": "user",
    "response": "assistant", "model": "assistant", "[/INST]": "assistant", "<<SYS>>": "system",
    "ipython": "tool",
}  # fmt: skip
"""Roles by what a layout calls them; other names are roles already."""
_START = re.compile(r"\A\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|\[gMASK\]<sop>)\s*)+")
_END = re.compile(r"\s*(?:</s>|<eos>|<\|(?:endoftext|end_of_text|im_end|eot_id|end)\|>)(?:\s*<s>)?\s*\Z")
_PREAMBLE = re.compile(r"^Below is an instruction that describes a task\b.*?(?=\n\n|\Z)", re.DOTALL)

_RAW = "name --task text for raw text"


class Layout(NamedTuple):
    """How a part of a text begins, and what closes it."""

    name: str
    opening: re.Pattern[str]
    """Its only group is the part's name."""
    closing: str | None = None
    """Regular expression, with NAME for the part's name. The text before it is kept as it is, and nothing may stand between
    the parts. None: a part ends where the next begins, and white space around it is the layout's."""


LAYOUTS = (
    Layout("alpaca", re.compile(r"^### (Instruction|Input|Response):[ \t]*\n?", re.MULTILINE)),
    Layout("tags", re.compile(r"<(system|instruction|input|response)>"), "</NAME>"),
    Layout("ChatML", re.compile(r"<\|im_start\|>(system|user|assistant|tool)\n"), r"<\|im_end\|>"),
    Layout(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>(system|user|assistant|ipython)<\|end_header_id\|>\n\n"),
        r"<\|eot_id\|>|<\|end_of_text\|>",
    ),
    Layout("Gemma", re.compile(r"<start_of_turn>(user|model)\n"), "<end_of_turn>"),
    Layout("Zephyr", re.compile(r"<\|(system|user|assistant)\|>\n"), r"</s>|<\|end\|>|<\|endoftext\|>"),
    Layout("Llama 2", re.compile(r"(\[INST\]|\[/INST\]|<<SYS>>|<</SYS>>)")),
    Layout("Human/Assistant", re.compile(r"### (System|Human|User|Assistant):")),
    Layout("Vicuna", re.compile(r"(?:^|(?<=[\s>]))(USER|ASSISTANT):", re.MULTILINE)),
)
"""Tried in this order."""


def layout_of(text: str) -> Layout | None:
    """The layout in which a text has a user's and an assistant's part; None where it is another text."""
    for layout in LAYOUTS:
        if {"user", "assistant"} <= {_role(mark[1]) for mark in layout.opening.finditer(text)}:
            return layout
    return None


def parts_of(text: str, layout: Layout) -> list[tuple[str, str]]:
    """(role, text) of the parts in order; the role `input` is the second half of the user's turn before it.

    Raises:
        ValueError: text that belongs to no part, which would be lost.
    """
    text = _START.sub("", text)
    return _open_parts(text, layout.opening) if layout.closing is None else list(_closed_parts(text, layout))


def _open_parts(text: str, opening: re.Pattern[str]) -> list[tuple[str, str]]:
    marks = list(opening.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    parts = [(_role(mark[1]), _body(text[mark.end() : end])) for mark, end in zip(marks, ends, strict=True)]
    if system := _PREAMBLE.sub("", text[: marks[0].start()]).strip():
        return [("system", system), *parts]
    # The system's text of Llama 2 stands within the first turn of the user, where nothing is before it.
    return parts[1:] if len(parts) > 1 and not parts[0][1] and parts[1][0] == "system" else parts


def _closed_parts(text: str, layout: Layout) -> Iterator[tuple[str, str]]:
    at = 0
    while mark := layout.opening.search(text, at):
        _nothing(text[at : mark.start()])
        closing = re.compile(str(layout.closing).replace("NAME", mark[1])).search(text, mark.end())
        body = text[mark.end() : closing.start()] if closing else text[mark.end() :]
        # A word such as <input> may well stand in an answer.
        if any(_role(inner[1]) != "input" for inner in layout.opening.finditer(body)):
            raise ValueError(f"expected the part {mark[0].strip()!r} to be closed, got the next one; {_RAW}")
        yield _role(mark[1]), body
        at = closing.end() if closing else len(text)
    _nothing(text[at:])


def _role(name: str) -> str:
    name = name if name in _ROLES else name.lower()
    return _ROLES.get(name, name)


def _body(text: str) -> str:
    """A part without the end-of-text token and the white space that the layout puts around it."""
    return _END.sub("", text).strip()


def _nothing(between: str) -> None:
    left = _END.sub("", between).strip()
    if left:
        raise ValueError(f"expected nothing between the parts of the layout, got {left[:60]!r}; {_RAW}")
