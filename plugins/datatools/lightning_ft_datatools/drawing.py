"""The text of an example as tokens make it: which of it trains, which is a special token, which is cut."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.types import IGNORE_INDEX, Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.data.encode import Encoder
    from lightning_ft.types import Encoded, Example
    from lightning_ft_datatools.sides import Side

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys or hides instead of showing them."""
TAB = 4
"""Blanks in place of a tab, so that what is drawn below stands below."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one kind."""

    text: str
    trained: bool
    special: bool
    cut: bool


@dataclass(frozen=True)
class Drawn:
    """An example with the mask of its tokens."""

    pieces: tuple[Piece, ...]
    encoded: Encoded
    """As it would train, cut to the limit."""


def draw(encoder: Encoder, whole: Encoder, tokenizer: Any, side: Side, row: str) -> Drawn:
    """The pieces of one text of an example.

    Args:
        encoder: with the limit that rows are cut to.
        whole: the same without a limit.
        tokenizer: of both.
        side: the text.
        row: the `file:line` of the example.

    Raises:
        DataError: the template refuses it.
    """
    example = side.example
    cut = encoder.encode([example], [row])[0]
    full = whole.encode([example], [row])[0]
    texts = _texts(encoder, tokenizer, example, list(full.input_ids))
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    kinds = [
        # The first token has no predecessor, so it never has a loss.
        (label != IGNORE_INDEX and position > 0, token in special, position >= len(cut.input_ids))
        for position, (token, label) in enumerate(zip(full.input_ids, full.labels, strict=True))
    ]
    pieces = []
    for kind, group in itertools.groupby(zip(kinds, texts, strict=True), key=lambda pair: pair[0]):
        pieces.append(Piece("".join(text for _, text in group), *kind))
    return Drawn(tuple(pieces), cut)


def _texts(encoder: Encoder, tokenizer: Any, example: Example, ids: Sequence[int]) -> list[str]:
    """The characters of each token; those between two tokens go with the second."""
    text = example.text if isinstance(example, Text) else encoder.render_example(example).text
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    starts, at = [], 0
    for _, end in encoding.offsets:
        starts.append(at)
        at = max(at, end)
    body = [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]
    if len(body) == len(ids):
        return body
    # A raw text gets its first and its last token as ids, not as characters.
    before = next(n for n in range(len(ids) - len(body) + 1) if list(ids[n : n + len(body)]) == list(encoding.ids))
    named = tokenizer.convert_ids_to_tokens(list(ids))
    return [*named[:before], *body, *named[before + len(body) :]]


def visible(text: str) -> str:
    """A text for a terminal, with what it would obey or hide as escapes."""
    return _UNSEEN.sub(lambda mark: mark[0].encode("unicode_escape").decode(), text)


def underlined(pieces: Sequence[Piece]) -> Iterator[str]:
    """Lines of plain text, each with a line of marks below it where something of it trains (`~`) or is cut (`x`)."""
    from rich.cells import cell_len

    text, marks = "", ""
    for piece in pieces:
        for character in visible(piece.text).expandtabs(TAB):
            if character == "\n":
                yield from _lines(text, marks)
                text, marks = "", ""
                continue
            text += character
            marks += ("x" if piece.cut else "~" if piece.trained else " ") * cell_len(character)
    yield from _lines(text, marks)


def _lines(text: str, marks: str) -> Iterator[str]:
    yield text
    if marks.strip():
        yield marks.rstrip()
