"""Words, sentences and n-grams of a text, as the metrics of this package count them."""

from __future__ import annotations

import functools
import re
import string
from typing import TYPE_CHECKING, Any

from lightning_ft.words import CHARACTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = "tok:words|case:lower"
"""What `words` does, for the signatures of metrics."""


def words(text: str) -> list[str]:
    """The words of a text in lower case.

    A word is a run of letters and digits of any script with their combining marks and joiners; each Han, kana or hangul
    character is a word of its own. Punctuation, symbols and emoji are none.
    """
    found: list[str] = word_pattern().findall(text.lower())
    return found


@functools.cache
def word_pattern() -> Any:
    """Compiled once. By the regex package, as Python's own `re` knows no class for marks: vowel signs would end words."""
    import regex  # type: ignore[import-untyped]  # ships no types

    letter = rf"(?![{CHARACTERS}])[\p{{L}}\p{{N}}]"
    further = rf"(?![{CHARACTERS}])[\p{{L}}\p{{N}}\p{{M}}\u200c\u200d]"
    return regex.compile(rf"[{CHARACTERS}]|{letter}(?:{further})*")


def squad_words(text: str) -> list[str]:
    """Words after SQuAD's normalisation: lower case, without punctuation and articles."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def one_sentence_a_line(text: str) -> str:
    """The text with a line break after every sentence, as rouge-score expects it for rougeLsum."""
    return re.sub(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*", "\n", text.strip())


def ngrams(tokens: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """All runs of `order` neighbouring tokens, with repetition."""
    return [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]


class WordTokenizer:
    """rouge-score's own words on ASCII text, and words of all other scripts too, which its default drops.

    As `words`, and words of more than three ASCII letters are stemmed (Porter), as rouge-score does it.
    """

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem: Any = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`."""
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in words(text)]
