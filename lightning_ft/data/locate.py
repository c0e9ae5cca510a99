"""Where the trained answers stand in a rendered conversation, without trusting the template.

Three ways, each verified against the text that the tokenizer's own renderer gives:

1. `{% generation %}` marks, if on a neutral conversation they agree with the definition (see `render`);
2. private-use characters around the contents, found again in the rendering and cut out. What surrounds a content hardly
   varies from row to row, so borders are worked out once per distinct surrounding text; the comparison with the real
   rendering is made for the first rows, then now and then, and for every row in which the template could react to the
   content (its string constants, further keys, empty contents);
3. differences of prefixes: `messages[:i]` with generation prompt against `messages[:i + 1]`.

A row whose shape is known and to which the template cannot react is not rendered at all (see `frames`); it is compared with
the real rendering as often as in 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning_ft.data.dialect import NEUTRAL, common
from lightning_ft.data.frames import Frames
from lightning_ft.errors import UsageError
from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from lightning_ft.data.dialect import Dialect
    from lightning_ft.data.frames import Found

_SENTINELS = "\ue5ee\uf0e1\uebd3"
_CHECKED_ROWS = 16
_CHECK_EVERY = 256
_MEMORY = 4096  # distinct surroundings that are remembered


@dataclass(slots=True)
class _Wrapped:
    """One conversation rendered with sentinels, and the text without them."""

    dicts: list[dict[str, Any]]
    places: dict[int, tuple[int, int]]
    text: str
    mark: str
    doubtful: bool


class Locator:
    """Finds answers; remembers what it learned of the template. Picklable."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._starts: dict[tuple[str, str, bool], int] = {}
        self._ends: dict[tuple[str, bool], int] = {}
        self._frames = Frames(dialect)
        self._rows = 0
        self._check_all = False

    def locate(self, chat: Conversation, trained: list[int]) -> Found:
        """The text of a conversation and the borders of the messages with these indices.

        Raises:
            UsageError: the template refuses the conversation, or rewrites it so that the answers cannot be located.
        """
        if not trained:
            return self._dialect.real(chat.messages, chat.tools), []
        reacts = self._reacts(chat)
        shape = None if reacts or self._check_all else self._frames.shape(chat, trained)
        if shape and (found := self._frames.fill(shape, chat)):
            if not self._sampled() or found[0] == self._dialect.real(chat.messages, chat.tools):
                return found
            self._check_all, shape = True, None
        doubtful = reacts or self._has_further(chat)
        found = self._in_full(chat, trained, doubtful)
        if shape and self._frames.wants(shape) and (wrapped := self._wrap(chat, self._movable(chat, trained), doubtful, False)):
            self._frames.learn(shape, chat, trained, found, wrapped.places)
        return found

    def _in_full(self, chat: Conversation, trained: list[int], doubtful: bool) -> Found:
        if self._dialect.marked and self._marks_agree and (found := self._by_marks(chat, trained)):
            return found
        return self._by_all_sentinels(chat, trained, doubtful) or self._by_prefixes(chat, trained)

    # Marks -------------------------------------------------------------------------------------------------------------

    @cached_property
    def _marks_agree(self) -> bool:
        chat = Conversation(tuple(Message(("user", "assistant")[i % 2], word) for i, word in enumerate(NEUTRAL)))
        try:
            return self._by_marks(chat, [1, 3]) == self._by_all_sentinels(chat, [1, 3], self._reacts(chat))
        except UsageError:
            return False

    def _by_marks(self, chat: Conversation, trained: list[int]) -> Found | None:
        messages, dialect = chat.messages, self._dialect
        assistants = [i for i, message in enumerate(messages) if message.role == "assistant"]
        text, marks = dialect.tracked([dialect.as_dict(message, message.content) for message in messages], chat.tools)
        if len(marks) != len(assistants) or not set(trained) <= set(assistants):
            return None
        borders = []
        limits = [start for start, _ in marks[1:]] + [len(text)]
        for i, (start, end), limit in zip(assistants, marks, limits, strict=True):
            body = text[start:end].rstrip()
            if messages[i].content.strip() not in body:
                return None  # transformers counts wrongly inside macros and set blocks; or the template rewrites contents
            end = start + len(body)
            if not dialect.closed(body):
                end += self._close(text[end:limit], i == len(messages) - 1)
            if i in trained:
                borders.append((start, end))
        return text, borders

    # Sentinels ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _movable(chat: Conversation, trained: list[int]) -> list[int]:
        return [i for i, message in enumerate(chat.messages) if message.role != "system" or i in trained]

    def _by_all_sentinels(self, chat: Conversation, trained: list[int], doubtful: bool) -> Found | None:
        for indices in (self._movable(chat, trained), trained):
            for after_marker in (False, True) if doubtful else (False,):
                if wrapped := self._wrap(chat, indices, doubtful, after_marker):
                    return wrapped.text, [self._borders(i, chat, wrapped) for i in trained]
        return None

    def _reacts(self, chat: Conversation) -> bool:
        """Whether the template could render this conversation otherwise for what stands in its contents."""
        markers = self._dialect.markers
        return any(not m.content.strip() or any(marker in m.content for marker in markers) for m in chat.messages)

    @staticmethod
    def _has_further(chat: Conversation) -> bool:
        """Whether turns have keys beside role and content, which the template may read."""
        return any(message.extra for message in chat.messages)

    def _wrap(self, chat: Conversation, indices: list[int], doubtful: bool, after_marker: bool) -> _Wrapped | None:
        mark = next((c for c in _SENTINELS if not any(c in message.content for message in chat.messages)), None)
        if mark is None:
            return None
        dicts, cores = [], {}
        for i, message in enumerate(chat.messages):
            content = message.content
            if i in indices and content.strip():
                # Inside the outer white space: then a template that strips and one that does not give the same borders.
                start, end = self._core(content, after_marker)
                cores[i] = content[start:end]
                content = f"{content[:start]}{mark}{cores[i]}{mark}{content[end:]}"
            dicts.append(self._dialect.as_dict(message, content))
        try:
            parts = self._dialect.text(dicts, chat.tools).split(mark)
        except UsageError:
            return None
        if len(parts) != 2 * len(cores) + 1 or parts[1::2] != list(cores.values()):
            return None
        text = "".join(parts)
        if (self._sampled() or doubtful) and text != self._dialect.real(chat.messages, chat.tools):
            self._check_all = self._check_all or not doubtful
            return None
        places, at = {}, 0
        for k, i in enumerate(cores):
            at += len(parts[2 * k])
            places[i] = (at, at + len(cores[i]))
            at += len(cores[i])
        return _Wrapped(dicts, places, text, mark, doubtful)

    def _core(self, content: str, after_marker: bool) -> tuple[int, int]:
        start = 0
        if after_marker:  # the template cuts the content at a marker: what follows the last one stays in one piece
            start = max((content.rfind(m) + len(m) for m in self._dialect.markers if m in content), default=0)
        start += len(content[start:]) - len(content[start:].lstrip())
        return start, max(start, len(content.rstrip()))

    def _sampled(self) -> bool:
        self._rows += 1
        return self._check_all or self._rows <= _CHECKED_ROWS or self._rows % _CHECK_EVERY == 0

    def _borders(self, i: int, chat: Conversation, wrapped: _Wrapped) -> tuple[int, int]:
        """Start and end of one turn from the places of the contents around it."""
        text, places = wrapped.text, wrapped.places
        anchor = max((places[j][1] for j in places if j < i), default=0)
        limit = min((places[j][0] for j in places if j > i), default=len(text))
        own = places.get(i)
        start = anchor + self._start(i, chat, wrapped, text[anchor : own[0] if own else limit])
        if own and not chat.messages[i].extra:
            closing = self._close(text[own[1] : limit], i == len(chat.messages) - 1)
            if closing or not self._dialect.learned.stop:
                return start, own[1] + closing
        # Tool calls and the like stand behind the content: compare with the rendering that ends here.
        base = own[1] if own else anchor
        turn = self._dialect.text(wrapped.dicts[: i + 1], chat.tools)
        tail = turn.rpartition(wrapped.mark)[2] if base else turn
        rest = text[base:limit]
        end = max(start, base + len(rest[: common(tail, rest)].rstrip()))
        stop = self._dialect.learned.stop
        if stop and stop in text[start:end]:
            end = start + text[start:end].rindex(stop) + len(stop)
        elif not self._dialect.closed(text[start:end]):
            end += self._close(text[end:limit], i == len(chat.messages) - 1)
        return start, end

    def _start(self, i: int, chat: Conversation, wrapped: _Wrapped, before: str) -> int:
        """How much of the text before an answer is the generation prompt (all of it for other roles)."""
        messages = chat.messages
        if messages[i].role != "assistant":
            return len(before)
        key = (before, messages[i - 1].role if i else "", bool(chat.tools))
        start = None if wrapped.doubtful else self._starts.get(key)
        if start is None:
            prompt = self._dialect.prompt(wrapped.dicts[:i], chat.tools) if i else ""
            start = common(prompt.rpartition(wrapped.mark)[2], before)
            if not wrapped.doubtful and len(self._starts) < _MEMORY:
                self._starts[key] = start
        return start

    # Prefixes ----------------------------------------------------------------------------------------------------------

    def _by_prefixes(self, chat: Conversation, trained: list[int]) -> Found:
        messages, dialect = chat.messages, self._dialect
        text = dialect.real(messages, chat.tools)
        borders = []
        for i in trained:
            before = dialect.prompt([dialect.as_dict(m, m.content) for m in messages[:i]], chat.tools) if i else ""
            turn = dialect.real(messages[: i + 1], chat.tools).rstrip()
            if messages[i].role != "assistant" or not (text.startswith(turn) and turn.startswith(before)):
                raise UsageError(
                    f"expected to find message {i + 1} ({messages[i].role}) in the text that the template '{dialect.name}' "
                    "renders, but the template rewrites it; type --template alpaca (or tags), or name another Jinja file"
                )
            end = len(turn)
            if not dialect.closed(turn[len(before) :]):
                end += self._close(text[end:], i == len(messages) - 1)
            borders.append((len(before), end))
        return text, borders

    def _close(self, after: str, final: bool) -> int:
        known = self._ends.get((after, final))
        if known is None:
            known = self._dialect.closing(after, final)
            if len(self._ends) < _MEMORY:
                self._ends[after, final] = known
        return known
