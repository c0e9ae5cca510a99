"""One chat template as the tokenizer would use it: its rendering, and what closes and opens its assistant turns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import Message

_PIECES = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,32}\]|\s|[^\s<\[]+|.")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OPENS_ANSWER = re.compile(r"assistant|model|bot|gpt", re.IGNORECASE)
_REASONING = frozenset({"reasoning_content", "reasoning", "thinking"})  # transformers renames these before rendering
NEUTRAL = ("zqau", "zqba", "zqcu", "zqda")
"""Contents that no template reacts to: user, assistant, user, assistant."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a two-turn conversation of neutral words tells about a template."""

    parts: bool = False
    """Contents must be lists of `{"type": "text"}`."""
    header: str = ""
    """What opens an assistant turn where the template ignores `add_generation_prompt`."""
    stop: str = ""
    """What closes every assistant turn."""
    closer: str = ""
    """The text whose last token ends a generation."""


class Dialect:
    """A Jinja template bound to the special tokens of a tokenizer; rendered in transformers' sandbox. Picklable."""

    def __init__(self, name: str, source: str, tokenizer: Any) -> None:
        self.name = name
        self.source = source
        self.special: dict[str, str] = dict(tokenizer.special_tokens_map)
        self.bos: str | None = tokenizer.bos_token
        self.eos: str | None = tokenizer.eos_token
        added = {str(token) for token in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens)}
        self._tokens = tuple(sorted((token for token in added if token.strip()), key=len, reverse=True))

    # Rendering ---------------------------------------------------------------------------------------------------------

    def as_dict(self, message: Message, content: str) -> dict[str, Any]:
        """A message as the template reads it, with another content."""
        out = message.as_dict()
        out["content"] = [{"type": "text", "text": content}] if self.learned.parts else content
        return out

    def real(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        """What the tokenizer's own renderer gives: the reference of every check."""
        return self._public([self.as_dict(message, message.content) for message in messages], tools, False, False)[0]

    def prompt(self, dicts: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        """The text after which the model has to write an assistant turn."""
        text = self.text(dicts, tools, generation=True)
        return text + self.learned.header if dicts and dicts[-1]["role"] != "assistant" else text

    def text(self, dicts: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], generation: bool = False) -> str:
        """One rendering."""
        return self._render(dicts, tools, generation, False)[0]

    def tracked(self, dicts: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
        """One rendering with the places of its `{% generation %}` blocks."""
        return self._render(dicts, tools, False, True)

    def _render(
        self, dicts: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], generation: bool, tracked: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        # The public renderer copies all it shows to the template and renames reasoning keys; plain messages need neither.
        if tools or not all(_plain(message) for message in dicts):
            return self._public(dicts, tools, generation, tracked)
        from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

        try:
            template = _compile_jinja_template(self.source)
            if tracked:
                return cast(
                    "tuple[str, list[tuple[int, int]]]",
                    _render_with_assistant_indices(template, dicts, None, None, generation, **self.special),  # type: ignore[no-untyped-call]  # transformers does not type it
                )
            given = {**_globals(self.source), **self.special, "messages": dicts, "add_generation_prompt": generation}
            text = "".join(template.root_render_func(template.new_context(given, shared=True)))
        except Exception as error:  # a template may fail in any way that Jinja and its sandbox know
            raise self._refused(error) from error
        return text, []

    def _public(
        self, dicts: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], generation: bool, tracked: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        special: dict[str, Any] = dict(self.special)
        try:
            texts, marks = cast(
                "tuple[list[str], list[list[tuple[int, int]]]]",
                render_jinja_template(
                    conversations=[dicts],
                    tools=[dict(tool) for tool in tools] or None,
                    chat_template=self.source,
                    return_assistant_tokens_mask=tracked,
                    add_generation_prompt=generation,
                    **special,
                ),
            )
        except Exception as error:  # as above
            raise self._refused(error) from error
        return texts[0], marks[0] if marks else []

    def _refused(self, error: Exception) -> UsageError:
        return UsageError(f"the template '{self.name}' cannot render this conversation: {error}")

    # What is known of the template --------------------------------------------------------------------------------------

    @cached_property
    def marked(self) -> bool:
        """Whether it has `{% generation %}` marks."""
        return bool(_GENERATION.search(self.source))

    @cached_property
    def learned(self) -> Learned:
        """From one neutral conversation; a template that refuses it stays unknown (no stop text, no header)."""
        for parts in (False, True):
            contents: list[Any] = [[{"type": "text", "text": word}] if parts else word for word in NEUTRAL]
            chat = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
            try:
                text, asked, plain = self.text(chat, ()), self.text(chat[:3], (), generation=True), self.text(chat[:3], ())
            except UsageError:
                continue
            if all(text.count(word) == 1 for word in NEUTRAL) and NEUTRAL[2] in asked:
                return self._learn(parts, text, asked, plain)
        return Learned()

    def _learn(self, parts: bool, text: str, asked: str, plain: str) -> Learned:
        _, answer, user, final = NEUTRAL
        middle, _, rest = text.partition(answer)[2].partition(user)
        between, _, tail = rest.partition(final)
        stop = tail[: common(middle, tail)].strip()
        if self.eos and self.eos in stop:
            stop = stop[: stop.index(self.eos) + len(self.eos)]
        header = ""
        if asked == plain:
            lead = between[common(asked.partition(user)[2], between) :]
            # A blank at the end goes with the answer: " word" is one token.
            header = lead.rstrip(" ") if _OPENS_ANSWER.search(lead) else ""
        closer = stop or self.leading_token(tail.lstrip()) or self.leading_token(middle.lstrip())
        return Learned(parts, header, stop, closer)

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """String constants that the template may look for in a content (`</think>` ...): such rows are checked in full."""
        from jinja2 import nodes
        from transformers.utils.chat_template_utils import _compile_jinja_template

        found: set[str] = set()
        tree = _compile_jinja_template(self.source).environment.parse(self.source)
        for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
            found |= {constant.value for constant in node.find_all(nodes.Const) if isinstance(constant.value, str)}
        return tuple(sorted(text for text in found if len(text.strip()) > 1 and not re.fullmatch(r"[\w .,:'-]+", text)))

    def leading_token(self, text: str) -> str:
        """The special token at the start of a text, other than the one that begins every text."""
        unless = self.bos if self.bos != self.eos else None
        return next((token for token in self._tokens if text.startswith(token) and token != unless), "")

    def ends_in_token(self, text: str) -> bool:
        """Whether a text ends, but for white space, in a token of its own that a generation could stop at."""
        return text.rstrip().endswith(self._tokens)

    def closed(self, text: str) -> bool:
        """Whether an answer's text ends in what closes a turn."""
        return text.endswith(self.learned.stop) if self.learned.stop else self.ends_in_token(text)

    def closing(self, after: str, final: bool) -> int:
        """How many characters of the text after an answer still belong to it: white space and the stop token."""
        body = after.lstrip()
        blank = len(after) - len(body)
        if self.learned.stop and body.startswith(self.learned.stop):
            return blank + len(self.learned.stop)
        # Written at the start of the next turn only, or different at the very end: then the token itself says so.
        if token := self.leading_token(body):
            return blank + len(token)
        return len(after.rstrip()) if final else 0


@lru_cache
def _globals(source: str) -> dict[str, Any]:
    """What transformers' environment and an ordinary rendering give to a template, once: Jinja would copy it for each row."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return {**_compile_jinja_template(source).globals, "tools": None, "documents": None}


def common(prompt: str, text: str) -> int:
    """Length of the common prefix, in whole markers (`<|end|>` and `<|endoftext|>` have nothing in common)."""
    if text.startswith(prompt):
        return len(prompt)
    size = 0
    for left, right in zip(_PIECES.finditer(prompt), _PIECES.finditer(text), strict=False):
        if left.group() != right.group():
            break
        size = left.end()
    return size


def _plain(message: Mapping[str, Any]) -> bool:
    return len(message) == 2 or (
        _REASONING.isdisjoint(message) and all(isinstance(value, str) or key == "content" for key, value in message.items())
    )
