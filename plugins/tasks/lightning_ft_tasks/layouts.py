"""The layouts in which people write conversations into one text, and the way back to turns."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

from lightning_ft.data.text import END_OF_TEXT, START_OF_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROLES = {
    "instruction": "user", "human": "user", "[INST]": "user", "<</SYS>>": "user", "response": "assistant", "model": "assistant",
    "[/INST]": "assistant", "<<SYS>>": "system", "[SYSTEM_PROMPT]": "system", "[/SYSTEM_PROMPT]": "", "ipython": "tool",
}  # fmt: skip
"""Roles by what a layout calls them; other names are roles already."""
_START = re.compile(rf"\A\s*(?:(?:{START_OF_TEXT})\s*)+")
_AT_END = re.compile(rf"(?:{END_OF_TEXT}|### End)\Z")
_ENDS_WITHIN = re.compile(END_OF_TEXT)
_PREAMBLE = re.compile(
    r"\ABelow is an instruction that describes a task(?:, paired with an input that provides further context)?\. "
    r"Write a response that appropriately completes the request\.\s*"
)


class Layout(NamedTuple):
    """How a part of a text begins, and what closes it."""

    name: str
    opening: re.Pattern[str]
    """Its only group is the part's name."""
    closing: str | None = None
    """Regular expression, with NAME for the part's name. The text before it is kept as it is, and nothing may stand between
    the parts. None: a part ends where the next begins, and blank lines around it are the layout's."""


LAYOUTS = (
    Layout("alpaca", re.compile(r"^### (System|Instruction|Input|Response):[ \t]*\n?", re.MULTILINE)),
    Layout("tags", re.compile(r"<(system|instruction|input|response)>"), "</NAME>"),
    Layout("ChatML", re.compile(r"<\|im_start\|>(system|user|assistant|tool)\n"), r"<\|im_end\|>"),
    Layout(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>(system|user|assistant|ipython)<\|end_header_id\|>\n\n"),
        r"<\|eot_id\|>|<\|end_of_text\|>",
    ),
    Layout("Gemma", re.compile(r"<start_of_turn>(user|model)\n"), "<end_of_turn>"),
    Layout("Zephyr", re.compile(r"<\|(system|user|assistant)\|>\n"), r"</s>|<\|end\|>|<\|endoftext\|>"),
    Layout(
        "Llama 2",  # an [INST] elsewhere is one that somebody writes about
        re.compile(
            r"(?:(?:\A|(?<=</s>)|(?<=<s>)|(?<=\]))\s*(?=\[INST\])|(?=\[/INST\]|\[/?SYSTEM_PROMPT\]|<</?SYS>>))"
            r"(\[/?INST\]|\[/?SYSTEM_PROMPT\]|<</?SYS>>) ?\n*"
        ),
    ),
    Layout("Human/Assistant", re.compile(r"### (System|Human|User|Assistant): ?\n*")),
    Layout("Vicuna", re.compile(r"(?:^[ \t]*|(?<=</s>)|(?<=[.!?] )|(?<=\s)(?=ASSISTANT))(USER|ASSISTANT): ?\n*", re.MULTILINE)),
)


def layout_of(text: str) -> Layout | None:
    """The layout in which a text has a user's and an assistant's part; None where it is another text.

    Of several the one whose first part comes first: the others stand within its turns.
    """
    text = _plain(text)
    found: list[tuple[int, Layout]] = []
    for layout in LAYOUTS:
        marks = list(layout.opening.finditer(text))
        if {"user", "assistant"} <= {_role(mark[1]) for mark in marks}:
            found.append((marks[0].start(), layout))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def parts_of(text: str, layout: Layout) -> list[tuple[str, str]]:
    """(role, text) of the parts in order; the role `input` is the second half of the user's turn before it.

    Raises:
        ValueError: text that belongs to no part, which would be lost, or parts that are no conversation.
    """
    text = _plain(text)
    if layout.closing is None:
        return _open_parts(text, layout.opening)
    return list(_closed_parts(text, layout.opening, layout.closing))


def _open_parts(text: str, opening: re.Pattern[str]) -> list[tuple[str, str]]:
    marks = list(opening.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    parts = [(_role(mark[1]), _body(text[mark.end() : end])) for mark, end in zip(marks, ends, strict=True)]
    parts = [part for part in parts if part != ("", "")]  # behind a mark that only closes
    if len(parts) > 1 and parts[0] == ("user", "") and parts[1][0] == "system":
        del parts[0]  # Llama 2 writes the system's text into the first turn of the user
    if before := _PREAMBLE.sub("", text[: marks[0].start()]).strip():
        parts.insert(0, ("system", before))
    roles = [role for role, _ in parts if role != "input"]
    if "" in roles or any(one == other for one, other in itertools.pairwise(roles)):
        named = ", ".join(role or "text between them" for role in roles)
        raise ValueError(f"expected turns of user and assistant in alternation, got {named}")
    for _, body in parts:
        if mark := _ENDS_WITHIN.search(body):
            raise ValueError(f"expected the next part behind {mark[0]}, got {body[mark.end() :].strip()[:60]!r}")
    return parts


def _closed_parts(text: str, opening: re.Pattern[str], closing: str) -> Iterator[tuple[str, str]]:
    at = 0
    while mark := opening.search(text, at):
        between = text[at : mark.start()]
        _nothing(_without_end(between) if "NAME" in closing else between)
        close = re.compile(closing.replace("NAME", mark[1])).search(text, mark.end())
        body = text[mark.end() : close.start()] if close else _without_end(text[mark.end() :])
        # A word such as <input> may well stand in an answer.
        if any(_role(inner[1]) != "input" for inner in opening.finditer(body)):
            raise ValueError(f"expected the part {mark[0].strip()!r} to be closed, got the next one")
        yield _role(mark[1]), body
        if close and "NAME" not in closing:
            closing = re.escape(close[0])  # one closes all: another one is text
        at = close.end() if close else len(text)
    _nothing(_without_end(text[at:]))


def _plain(text: str) -> str:
    """A text with line feeds only, without the tokens that begin it."""
    return _START.sub("", text.replace("\r\n", "\n"))


def _role(name: str) -> str:
    name = name if name in _ROLES else name.lower()
    return _ROLES.get(name, name)


def _body(text: str) -> str:
    """A part without the end-of-text token and the lines around it; it may begin with an indentation."""
    return _without_end(text).lstrip("\n")


def _without_end(text: str) -> str:
    """A text without white space and tokens at its end, and the `<s>` with which Llama 2 begins the next turn."""
    text = text.rstrip().removesuffix("<s>")
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        mark = _AT_END.search(text, max(0, end - 20), end)
        if mark is None:
            return text[:end]
        end = mark.start()


def _nothing(between: str) -> None:
    if between.strip():
        raise ValueError(f"expected nothing between the parts of the layout, got {between.strip()[:60]!r}")
