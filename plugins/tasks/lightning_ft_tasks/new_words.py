"""Words that a tokenizer writes in many pieces, or that a file names: candidates for tokens of their own."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError
from lightning_ft.types import Conversation, Text
from lightning_ft.words import MOST_PIECES, pieces_of_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from lightning_ft.types import Example

USUAL, LEAST = 100, 5
"""Words that `auto` adds, and how often each has to stand in the training rows."""


def asked_for(option: str | None) -> int | None:
    """How many words `auto` or `auto:N` asks for; None: a file is named, or nothing.

    Raises:
        UsageError: N is no whole number of at least 1.
    """
    kind, colon, number = (option or "").partition(":")
    if kind != "auto":
        return None
    if not colon:
        return USUAL
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise UsageError(f"Expected --task.add_tokens auto:N with a whole number of at least 1, got '{option}'.")
    return int(number)


def split_words(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, number: int) -> list[str]:
    """The most frequent words that take more than 3 tokens, at most `number`, the more frequent first, equal ones by letters.

    Raises:
        UsageError: there is none.
    """
    from lightning_ft.vocabulary import disturbing

    counts: Counter[str] = Counter()
    texts = (text for example in examples for text in texts_of(example))
    while some := list(itertools.islice(texts, 500)):
        for text, places in zip(some, pieces_of_words(tokenizer, some), strict=True):
            for start, end, pieces in places:
                if pieces > MOST_PIECES:
                    counts[text[start - (start > 0 and text[start - 1] == " ") : end]] += 1
    often = sorted((word for word, count in counts.items() if count >= LEAST), key=lambda word: (-counts[word], word))
    odd = set(disturbing(tokenizer, often))
    found = [word for word in often if word not in odd][:number]
    if not found:
        raise UsageError(
            f"Expected words of more than {MOST_PIECES} tokens that stand {LEAST} times or more in the training rows, got "
            f"{'none' if not often else 'none that this tokenizer could write as a token'}; leave --task.add_tokens out."
        )
    return found


def texts_of(example: Example) -> Sequence[str]:
    """What of an example the model reads."""
    if isinstance(example, Text):
        return (example.text,)
    return [turn.content for turn in example.messages] if isinstance(example, Conversation) else ()


def words_of_file(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a file, one a line, each once and with a space before it.

    Raises:
        UsageError: there is no such file, it has no word or more than one in a line, or the tokenizer has one already.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "bytes that are no UTF-8"
        raise UsageError(
            f"Expected --task.add_tokens auto, auto:N or a file with a word in each line; got '{path}' ({reason})."
        ) from error
    words: dict[str, None] = {}
    for line, text in enumerate(map(str.strip, lines), 1):
        word = f" {text}"
        if not text:
            continue
        if len(text.split()) > 1:
            raise UsageError(f"{path}:{line}: expected one word, got '{text}'; write each into a line of its own.")
        if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1:
            raise UsageError(f"{path}:{line}: expected a word that is no token yet, got '{text}'; take it out.")
        words[word] = None
    if not words:
        raise UsageError(f"Expected --task.add_tokens to be a file with a word in each line; '{path}' has none.")
    return list(words)
