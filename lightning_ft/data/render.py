"""Chat templates, and which characters of the rendered text are trained.

The trained part of an assistant turn is what the model itself has to write at inference: from the end of the generation
prompt (`add_generation_prompt=True`) to the end of the turn's stop token. So an empty `<think></think>` that a template
puts before an answer is trained where the generation prompt does not hold it already; white space between answer and stop
token is trained, white space after it is not. A stop token that the template writes only at the start of the next turn
belongs to the answer before it, and the tokenizer's end-of-text token is appended where no token at all closes the last
answer. Positions are those of the real rendering; token ids play no part. How they are found is in `locate`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_ft.data.dialect import Dialect
from lightning_ft.data.locate import Locator
from lightning_ft.data.text import TO_UTF8
from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import Conversation, Message

ASSETS = ("alpaca", "tags")
"""Templates that come with the package."""


class Span(NamedTuple):
    """Characters `[start, end)` of the rendered text that are trained: an answer with its stop token."""

    start: int
    end: int
    weight: float
    role: str


class Rendered(NamedTuple):
    """A conversation as text, with the trained parts in order."""

    text: str
    spans: tuple[Span, ...]


class Template:
    """A chat template bound to a tokenizer's special tokens. Picklable.

    Attributes:
        name: What messages call it.
        source: The Jinja text.
    """

    def __init__(self, name: str, source: str, tokenizer: Any) -> None:
        self.name = name
        self.source = source
        self._dialect = Dialect(name, source, tokenizer)
        self._locator = Locator(self._dialect)

    @classmethod
    def resolve(cls, name: str, tokenizer: Any) -> Template:
        """The template that a user's `auto`, `chat`, `alpaca`, `tags` or path of a Jinja file stands for.

        Raises:
            UsageError: there is no such template.
        """
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        key = name.lower()
        if key == "auto":
            key = "chat" if own else "alpaca"
        if key == "chat":
            if not own:
                raise UsageError("expected a tokenizer with a chat template, but it has none; type --template alpaca (or tags)")
            return cls("chat", _compiled(own, f"the chat template of '{tokenizer.name_or_path}'"), tokenizer)
        if key in ASSETS:
            source = resources.files("lightning_ft").joinpath(f"assets/templates/{key}.jinja").read_text(encoding="utf-8")
            # Chat text is tokenised just as the template writes it: where a model expects a first token, it must be in here.
            return cls(key, ("{{- bos_token -}}\n" if adds_bos(tokenizer) else "") + source, tokenizer)
        path = Path(name).expanduser()
        if path.is_file():
            return cls(path.stem, _read(path), tokenizer)
        known = ("auto", "chat", *ASSETS)
        raise UsageError(
            f"expected a template ({', '.join(known)}) or the path of a Jinja file, got '{name}'.{did_you_mean(name, known)}"
        )

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The special tokens that the template can write."""
        return self._dialect.special

    def install(self, tokenizer: Any) -> None:
        """Give the tokenizer this template, so that the saved model folder renders as the training did."""
        tokenizer.chat_template = self.source

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The text after which the model has to write an assistant turn.

        Raises:
            UsageError: the template refuses the messages.
        """
        return self._dialect.prompt([self._dialect.as_dict(message, message.content) for message in messages], tools)

    def stop_tokens(self, tokenizer: Any) -> tuple[int, ...]:
        """Ids at which generation ends: the end of text, and the token that closes an assistant turn in this template."""
        ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        closer = self._dialect.learned.closer
        if closer and self._dialect.ends_in_token(closer):
            ids.append(int(tokenizer.encode(closer, add_special_tokens=False)[-1]))
        return tuple(dict.fromkeys(ids))

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation's text and its trained spans.

        Raises:
            UsageError: the template refuses the conversation, or rewrites it so that the answers cannot be located.
        """
        messages, eos = conversation.messages, self._dialect.eos
        trained = [i for i, message in enumerate(messages) if message.loss_weight > 0]
        text, borders = self._locator.locate(conversation, trained)
        for message in messages:
            if calls := message.extra.get("tool_calls"):
                self._check_calls(calls, text)
        spans = []
        for i, (start, end) in zip(trained, borders, strict=True):
            last = i == len(messages) - 1 and messages[i].role == "assistant"
            if last and eos and not self._dialect.ends_in_token(text[start:end]):
                text += eos
                end = len(text)
            spans.append(Span(start, end, messages[i].loss_weight, messages[i].role))
        return Rendered(text, tuple(spans))

    def _check_calls(self, calls: Any, text: str) -> None:
        """Refuse a template that leaves out what the assistant has to learn to write."""
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function", call) if isinstance(call, dict) else {}
            name = function.get("name") if isinstance(function, dict) else None
            if isinstance(name, str) and name not in text:
                raise UsageError(
                    f"expected a template that writes tool calls, but '{self.name}' leaves out the call of '{name}'; name one "
                    "that knows tool_calls with --template, or give the call as the content of its turn"
                )


def _read(path: Path) -> str:
    """The text of a template file, once Jinja has taken it.

    Raises:
        UsageError: it is no UTF-8, or no Jinja.
    """
    try:
        return _compiled(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: expected UTF-8, got a wrong byte at byte {error.start}; convert it with {TO_UTF8}."
        ) from None


def _compiled(source: str, place: str) -> str:
    """The template's text itself, once Jinja has taken it.

    Raises:
        UsageError: it is no Jinja.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(source)
    except TemplateSyntaxError as error:
        raise UsageError(f"{place}:{error.lineno}: expected a Jinja template, got: {error.message}; mend the line.") from None
    return source


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts a first token before a plain text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
