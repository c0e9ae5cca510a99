"""From examples to token ids with labels: one pass of the fast tokenizer over the text, labels by character offsets."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lightning_ft.data.render import Rendered, Span, adds_bos
from lightning_ft.errors import DataError, UsageError
from lightning_ft.types import IGNORE_INDEX, Classified, Conversation, Encoded, Preference, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from lightning_ft.data.render import Template
    from lightning_ft.types import Example

CHUNK = 500
"""Rows that the tokenizer has at a time, while the next are rendered and the last are labelled."""

_Draft = Rendered | Text | str
"""What is known of a row before it is tokenised; a string is the reason why it cannot be."""
_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


class Encoder:
    """Turns conversations, texts and pairs into `Encoded` rows. Picklable, so that rows can be encoded in parallel.

    A token is trained if its last character lies in a trained span; a token without characters goes with the next one. A pair
    is a row of two texts: the prompt with the better answer, and the prompt with the worse one.
    """

    def __init__(self, tokenizer: Any, template: Template, max_length: int, positions: int | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UsageError(
                "Expected a fast tokenizer (tokenizer.json), which tells the place of each token in the text, got "
                f"{type(tokenizer).__name__}; convert it once with AutoTokenizer.from_pretrained(FOLDER, use_fast=True)"
                ".save_pretrained(FOLDER)."
            )
        if max_length < 2:
            raise UsageError(f"Expected --max_length of at least 2 tokens, got {max_length}.")
        self._backend = backend
        self._template = template
        self.max_length = max_length
        self.positions = positions
        """Tokens that the model has places for, beyond which no `max_length` can be advised; None: not known."""
        self._eos_id: int | None = tokenizer.eos_token_id
        self._eos: str = tokenizer.eos_token or ""
        self._bos_id: int | None = tokenizer.bos_token_id
        self._first = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        self._first_text: str = tokenizer.bos_token if self._first else ""

    def encode(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """One encoded row per example.

        Args:
            examples: Conversations, texts and pairs.
            rows: `file:line` of each, for error messages and the ledger.

        Raises:
            DataError: an example cannot be rendered; the message begins with its `file:line`.
        """
        encoded: list[Encoded] = []
        for item, row in zip(self.try_encode(examples, rows), rows, strict=True):
            if isinstance(item, str):
                raise DataError(f"{row}: {item}")
            encoded.append(item)
        return encoded

    def try_encode(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded | str]:
        """As `encode`, with the reason in place of a row that cannot be encoded."""
        pairs = list(zip(examples, rows, strict=True))
        return list(chain.from_iterable(self.encode_chunks(pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK))))

    def encode_chunks(self, chunks: Iterable[Sequence[tuple[Example, str]]]) -> Iterator[list[Encoded | str]]:
        """The encoded rows, or the reasons why they cannot be, of chunks of about `CHUNK` examples with their `file:line`.

        While the tokenizer has a chunk, the next one is drawn from `chunks` and the caller has the one before.
        """
        # transformers sets these anew with each of its own calls, so there is nothing to restore.
        self._backend.no_truncation()
        self._backend.no_padding()
        drafted = ((chunk, [self._drafts(example) for example, _ in chunk]) for chunk in chunks)
        for (chunk, drafts), found in _one_ahead(lambda pair: self._tokenise(pair[1]), drafted):
            encodings = iter(found)
            yield [
                _joined([self._labelled(draft, next(encodings), row) for draft in texts], row)
                for texts, (_, row) in zip(drafts, chunk, strict=True)
            ]

    def _drafts(self, example: Example) -> list[_Draft]:
        """The text of an example, or of a pair the two."""
        drafts: list[_Draft] = []
        for one in pair_of(example) if isinstance(example, Preference) else (example,):
            try:
                drafts.append(one if isinstance(one, Text) else self.render_example(one))
            except UsageError as error:
                drafts.append(str(error))
        return drafts

    def _tokenise(self, drafts: list[list[_Draft]]) -> list[Any]:
        texts = ["" if isinstance(draft, str) else draft.text for draft in chain.from_iterable(drafts)]
        return cast("list[Any]", self._backend.encode_batch(texts, add_special_tokens=False))

    def _labelled(self, draft: _Draft, encoding: Any, row: str) -> Encoded | str:
        if isinstance(draft, str):
            return draft
        return self._raw(encoding.ids, row) if isinstance(draft, Text) else self._chat(encoding, draft, row)

    def render_example(self, example: Example) -> Rendered:
        """The text that an example is trained as, with its trained spans.

        Raises:
            UsageError: the template cannot render it, or the example is of a kind that has no single text.
        """
        if isinstance(example, Classified):
            example = example.as_conversation()
        if isinstance(example, Conversation):
            return self._template.render(example)
        if isinstance(example, Text):
            text = f"{self._first_text}{example.text}{self._eos}"
            return Rendered(text, (Span(len(self._first_text), len(text), 1.0, "text"),))
        raise UsageError(f"expected a conversation or a text, got {type(example).__name__}, which is no single text")

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the same example could give other tokens or labels, the libraries being the same ones."""
        self._backend.no_truncation()
        self._backend.no_padding()
        parts = [
            self._backend.to_str(),
            self._template.source,
            repr(sorted(self._template.special_tokens.items())),
            f"{self.max_length} {self._first} {self._eos_id}",
        ]
        # The code itself, so that nobody has to remember to raise a version number.
        code = (Path(__file__).with_name(f"{name}.py") for name in ("render", "dialect", "locate", "frames", "encode"))
        parts += [path.read_text(encoding="utf-8") for path in code]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _raw(self, ids: list[int], row: str) -> Encoded:
        first = len(self._first)
        ids = self._first + ids + ([] if self._eos_id is None else [self._eos_id])
        labels = [IGNORE_INDEX] * first + ids[first:]
        return self._cut(ids, labels, row, [(first, len(ids), "text")], 1.0, None)

    def _chat(self, encoding: Any, rendered: Rendered, row: str) -> Encoded | str:
        ids: list[int] = encoding.ids
        if self._bos_id is not None and ids[:2] == [self._bos_id, self._bos_id]:
            return (
                f"expected one first token, but the template '{self._template.name}' writes it twice; take it out of the "
                "template or out of the row"
            )
        labels = [IGNORE_INDEX] * len(ids)
        kinds = {span.weight for span in rendered.spans}
        weights = [0.0] * len(ids) if len(kinds) > 1 else None
        ranges = []
        for span in rendered.spans:
            first, end = token_range(encoding, span.start, span.end, len(rendered.text))
            ranges.append((first, end, span.role))
            labels[first:end] = ids[first:end]
            if weights is not None:
                weights[first:end] = [span.weight] * (end - first)
        return self._cut(ids, labels, row, ranges, kinds.pop() if len(kinds) == 1 else 1.0, weights)

    def _cut(
        self,
        ids: list[int],
        labels: list[int],
        row: str,
        ranges: list[tuple[int, int, str]],
        weight: float,
        weights: list[float] | None,
    ) -> Encoded:
        """The first `max_length` tokens, with the account of the others; `context` is what is nobody's trained turn."""
        limit = self.max_length
        lost = max(0, len(ids) - limit)
        supervised_lost = 0
        if lost:
            supervised_lost = lost - labels[limit:].count(IGNORE_INDEX)
            ids, labels = ids[:limit], labels[:limit]
            weights = None if weights is None else weights[:limit]
        counts = {"context": len(ids)}
        for first, end, role in ranges:
            counts[role] = counts.get(role, 0) + min(end, limit) - min(first, limit)
            counts["context"] -= min(end, limit) - min(first, limit)
        roles = {role: (number, 0 if role == "context" else number) for role, number in counts.items()}
        return Encoded(ids, labels, row, weight, lost, supervised_lost, roles, weights)


def pair_of(example: Preference) -> tuple[Conversation, Conversation]:
    """The prompt with the better answer and with the worse one; of both only the answer is trained."""
    prompt = tuple(replace(turn, weight=0.0) for turn in example.prompt)
    return Conversation(prompt + example.chosen, meta=example.meta), Conversation(prompt + example.rejected, meta=example.meta)


def _joined(texts: Sequence[Encoded | str], row: str) -> Encoded | str:
    """The texts of a row end to end; where one of them has nothing to train, as after a cut, none has.

    Weights of turns are not kept: the log-probability of an answer is a sum over its tokens. A turn of weight 0 is none of it.
    """
    wrong = next((text for text in texts if isinstance(text, str)), None)
    if wrong is not None or len(texts) == 1:
        return wrong if wrong is not None else texts[0]
    found = [text for text in texts if isinstance(text, Encoded)]
    whole = all(text.supervised for text in found)
    labels = [[IGNORE_INDEX, *text.labels[1:]] if whole else [IGNORE_INDEX] * len(text.labels) for text in found]
    roles: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for text in found:
        roles.update({role: tokens for role, (tokens, _) in text.roles.items()})
        trained.update({role: supervised if whole else 0 for role, (_, supervised) in text.roles.items()})
    return Encoded(
        list(chain.from_iterable(text.input_ids for text in found)), list(chain.from_iterable(labels)), row,
        truncated=sum(text.truncated for text in found), supervised_lost=sum(text.supervised_lost for text in found),
        roles={role: (tokens, trained[role]) for role, tokens in roles.items()},
        parts=tuple(len(text.input_ids) for text in found),
        whole=max(len(text.input_ids) + text.truncated for text in found),
    )  # fmt: skip


def _one_ahead(work: Callable[[_Item], _Done], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Done]]:
    """Each item with `work(item)`, which a thread does while the caller has the item before and makes the next.

    Worth it for work that gives up Python's lock, as the tokenizer does.
    """
    begun = Event()

    def begin(item: _Item) -> _Done:
        begun.set()
        return work(item)

    with ThreadPoolExecutor(1) as thread:
        before: tuple[_Item, Future[_Done]] | None = None
        for item in items:
            begun.clear()
            now = item, thread.submit(begin, item)
            begun.wait()  # a thread that only asks for the lock gets it after 5 ms
            if before is not None:
                yield before[0], before[1].result()
            before = now
        if before is not None:
            yield before[0], before[1].result()


def token_range(encoding: Any, start: int, end: int, length: int) -> tuple[int, int]:
    """The tokens whose last character lies in `[start, end)` of a text of `length` characters, as a range.

    The token that holds character `start` is the first of them, the one that holds character `end` the first after them;
    the backend answers that without a list of all offsets. Characters that no token holds (trimmed white space) need it.
    """
    if start >= end:
        return 0, 0
    total = len(encoding)
    first = encoding.char_to_token(start)
    after = total if end >= length else encoding.char_to_token(end)
    if first is not None and after is not None:
        return first, after
    # A token without characters ends where the next begins, so it must be counted with the next one: its end plus one half.
    ends = [stop if stop > begin else stop + 0.5 for begin, stop in encoding.offsets]
    return bisect_left(ends, start + 0.5), bisect_left(ends, end + 0.5)
