"""What a template writes around the contents of a conversation, so that most rows need no rendering at all.

A conversation's *shape* is its roles, which of its turns are trained, its system text, and the names of further keys of its
turns. Within one shape nearly every template writes the same text around whatever the contents are: its frame. A frame is
taken from a row that was rendered and located in full, when its shape comes the second time, and must give the template's
own rendering for contents and further keys that a template could treat in a way of its own (very long, several lines,
numbers, markup, other scripts); later rows are compared now and then (see `locate`). Rows that the template could react to
never come here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.data.dialect import Dialect
    from lightning_ft.types import Conversation

Found = tuple[str, list[tuple[int, int]]]
"""The rendered text, and start and end of each trained message."""
Shape = tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]
"""Roles, numbers of the trained messages, system texts and the names of further keys."""

_MOST = 4096  # shapes that are remembered
_PROBES = (
    "a", "0", "-1.5", "True", "none", "word " * 4000 + "end", "one\ntwo\n\nthree", "\\n", "{'a': [1, 2]}", '{"a": null}',
    "<b>x</b> &amp; 'q' \"r\"", "\u00dc \u6f22\u5b57 \U0001f642", "# Title\n- item", "https://example.org/?a=b%20c", "{{ x }}",
)  # fmt: skip


class _Turn(NamedTuple):
    """One message that is not part of the frame."""

    message: int
    """Its number in the conversation."""
    before: str
    """What the template writes between the previous content and this one."""
    trained: tuple[int, int] | None
    """How far the trained part starts before the content and ends after it."""


@dataclass(frozen=True, slots=True)
class _Frame:
    turns: tuple[_Turn, ...]
    after: str

    def fill(self, contents: Sequence[str]) -> Found:
        """The text with these contents (one per message), and the borders of the trained ones."""
        parts: list[str] = []
        borders, at = [], 0
        for number, before, trained in self.turns:
            content = contents[number]
            parts += (before, content)
            at += len(before)
            end = at + len(content)
            if trained:
                borders.append((at - trained[0], end + trained[1]))
            at = end
        parts.append(self.after)
        return "".join(parts), borders


class Frames:
    """The frames of one template, by shape. Picklable."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: dict[Shape, _Frame | None] = {}
        """None: seen once, and nothing more."""
        self._refused: set[Shape] = set()

    @staticmethod
    def shape(chat: Conversation, trained: Sequence[int]) -> Shape | None:
        """The key of a conversation's frame; None where a template may treat it in a way of its own."""
        if chat.tools:
            return None
        further = []
        for message in chat.messages:
            content = message.content
            # Some templates trim contents, some do not: without white space outside it makes no difference.
            if not content or content != content.strip():
                return None
            if message.extra:
                if not all(isinstance(value, str) for value in message.extra.values()):
                    return None
                further += ["", *message.extra]
            if message.role == "system":
                further.append(content)
        return tuple([message.role for message in chat.messages]), tuple(trained), tuple(further)

    def fill(self, shape: Shape, chat: Conversation) -> Found | None:
        """Text and borders of a conversation of a known shape."""
        frame = self._known.get(shape)
        return frame.fill([message.content for message in chat.messages]) if frame else None

    def wants(self, shape: Shape) -> bool:
        """Whether a row of this shape, just located in full, should be shown to `learn`: the second one, once."""
        if shape in self._refused or len(self._known) + len(self._refused) >= _MOST:
            return False
        if shape in self._known:
            return True
        self._known[shape] = None
        return False

    def learn(
        self, shape: Shape, chat: Conversation, trained: Sequence[int], found: Found, places: Mapping[int, tuple[int, int]]
    ) -> None:
        """Take the frame from one located row, if it holds for the probes as well.

        Args:
            shape: Its shape.
            chat: The conversation.
            trained: The messages that are trained.
            found: Text and borders.
            places: Where the content of each message stands in the text; a message without is part of the frame.
        """
        frame = _cut(trained, found, places)
        free = {index for index, message in enumerate(chat.messages) if message.role != "system"}
        own = frame.fill([message.content for message in chat.messages])
        if free == places.keys() and own == found and all(self._holds(frame, chat, probe) for probe in _PROBES):
            self._known[shape] = frame
        else:
            del self._known[shape]
            self._refused.add(shape)

    def _holds(self, frame: _Frame, chat: Conversation, probe: str) -> bool:
        if any(marker in probe for marker in self._dialect.markers):
            return True  # such a content never comes here
        for form in ("{0} {1}", "{1} {0}", "{0}"):
            contents = [m.content if m.role == "system" else form.format(probe, i) for i, m in enumerate(chat.messages)]
            dicts = [
                self._dialect.as_dict(message, content) | dict.fromkeys(message.extra, form.format(probe, "key"))
                for message, content in zip(chat.messages, contents, strict=True)
            ]
            try:
                if self._dialect.text(dicts, ()) != frame.fill(contents)[0]:
                    return False
            except UsageError:
                return False
        return True


def _cut(trained: Sequence[int], found: Found, places: Mapping[int, tuple[int, int]]) -> _Frame:
    text, borders = found
    limits = dict(zip(trained, borders, strict=True))
    turns, at = [], 0
    for index, (start, end) in sorted(places.items()):
        limit = limits.get(index)
        turns.append(_Turn(index, text[at:start], limit and (start - limit[0], limit[1] - end)))
        at = end
    return _Frame(tuple(turns), text[at:])
