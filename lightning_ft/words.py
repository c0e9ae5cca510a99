"""The words of a text, and how many tokens of a tokenizer each takes."""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_PIECES = 3
"""Tokens up to which a word counts as one that the tokenizer knows."""
CHARACTERS = "\\u3040-\\u30ff\\u3400-\\u9fff\\uac00-\\ud7af"
"""Kana, Han and hangul, of which each character is a word."""
JOINERS = "\u200c\u200d"
_LAST_MARK = 0x1E900  # above are signs of music and of emoji only


@functools.cache
def word_pattern() -> re.Pattern[str]:
    """A run of letters of any script with their combining marks, which Python's own classes leave out; no digit."""
    marks = "".join(chr(i) for i in range(0x300, _LAST_MARK) if unicodedata.category(chr(i)).startswith("M"))
    letter = rf"(?![{CHARACTERS}])[^\W\d_]"
    return re.compile(rf"[{CHARACTERS}]|{letter}(?:{letter}|[{marks}{JOINERS}])*")


def pieces_of_words(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[tuple[int, int, int]]]:
    """Of each text its words as (start, end, pieces): places in characters, and the tokens that hold a part of the word.

    Args:
        tokenizer: A fast one, which tells the places of its tokens.
        texts: As they are tokenised.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    for text, encoding in zip(texts, backend.encode_batch(list(texts), add_special_tokens=False), strict=True):
        starts, ends = [start for start, _ in encoding.offsets], [end for _, end in encoding.offsets]
        places = (match.span() for match in word_pattern().finditer(text))
        yield [(start, end, bisect_left(starts, end) - bisect_right(ends, start)) for start, end in places]
