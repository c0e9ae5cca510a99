"""Rows written unlike the others: how prompts and answers begin, end and are set out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lightning_ft_datatools.records import Record

_COMMON = 0.95
"""Share of the rows from which a trait is the style of the data."""
_RARE = 0.015
"""Share of the rows below which a trait alone makes a row unlike the others; above it there must be two."""
_LEAST = 50  # rows from which there is a style
_SENTENCE_END = re.compile("[.!?:;)\\]\"'`*>}|\u2026\u3002\uff01\uff1f\uff1a\u201d\u2019]$")
_TAG = re.compile(r"</?(?:p|br|div|span|b|i|ul|li|strong|em|h[1-6]|table)\b[^<>]*>", re.IGNORECASE)


def _begins_low(text: str) -> bool:
    return text[:1].islower()


def _open_end(text: str) -> bool:
    return not _SENTENCE_END.search(text)


def _shouts(text: str) -> bool:
    if not text.isupper():  # of most texts this is all that is asked
        return False
    letters = [c for c in text if c.isalpha()]
    return len(letters) >= 12 and all(c.isupper() for c in letters)


def _repeats_signs(text: str) -> bool:
    return any(pair in text for pair in ("!!", "!?", "?!", "??")) and bool(re.search(r"[!?]{3,}", text))


def _marked_up(text: str) -> bool:
    return "<" in text and bool(_TAG.search(text))


TRAITS: Mapping[str, Callable[[str], bool]] = {
    "begins with a small letter": _begins_low,
    "ends without a full stop or question mark": _open_end,
    "is all in capitals": _shouts,
    "repeats '!' or '?'": _repeats_signs,
    "has HTML tags": _marked_up,
}
"""What a text may have that the others have not."""


def common_form(texts: Sequence[str]) -> list[float]:
    """For each text 1 where it begins and ends as most of them do, 0.5 where one of both, else 0."""
    flags = [[has(text.strip()) for text in texts] for has in (_begins_low, _open_end)]
    usual = [sum(column) * 2 > len(texts) for column in flags]
    return [sum(own == most for own, most in zip(row, usual, strict=True)) / 2 for row in zip(*flags, strict=True)]


def check_style(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Prompts and answers that differ from what at least 95 % of the rows have in common."""
    asked = [(r, r.question.strip()) for r in records if r.question.strip()]
    answered = [(r, r.answer.strip()) for r in records if r.label is None and r.answer.strip()]
    for kind, texts in (("prompt_style", asked), ("answer_style", answered)):
        if len(texts) < _LEAST:
            continue
        having = {name: [has(text) for _, text in texts] for name, has in TRAITS.items()}
        share = {name: sum(flags) / len(texts) for name, flags in having.items()}
        for number, (record, _) in enumerate(texts):
            own = [name for name in TRAITS if having[name][number] and share[name] <= 1 - _COMMON]
            if len(own) > 1 or any(share[name] <= _RARE for name in own):
                yield kind, record, " and ".join(own)
