"""BLEU as CodeBLEU takes it, plain and with keywords weighted (Ren et al. 2020, arXiv:2009.10297, section 3.1).

Words are what white space separates, as in the published code, so both numbers mean more where code is written with spaces.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ORDERS = (1, 2, 3, 4)
_OTHER_WORDS = 0.2
"""Weight of a word that is no keyword."""
_SMOOTHING = 0.1
"""Matches of an order that has none (method 1 of Chen and Cherry 2014)."""
_WEIGHTED_LENGTH = 2.0
"""Length of a reference to the brevity penalty of the weighted part: the published code takes that of (words, weights)."""
_RESERVED = {
    "python": """
        False None True and as assert async await break case class continue def del elif else except finally for from
        global if import in is lambda match nonlocal not or pass raise return try type while with yield
    """,
    "java": """
        abstract assert boolean break byte case catch char class const continue default do double else enum extends
        final finally float for goto if implements import instanceof int interface long native new package private
        protected public return short static strictfp super switch synchronized this throw throws transient try void
        volatile while
    """,
    "javascript": """
        await break case catch class const continue debugger default delete do else enum export extends false finally
        for function if implements import in instanceof interface let new null package private protected public return
        static super switch this throw true try typeof var void while with yield
    """,
    "go": """
        break case chan const continue default defer else fallthrough false for func go goto if import interface map
        package range return select struct switch true type var
    """,
}
KEYWORDS = {language: frozenset(words.split()) for language, words in _RESERVED.items()}
"""Words that count five times as much as others: what the language reserves, and names of truth values but for Java's."""


def bleu_counts(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Ten sums of a row: matches of each order, n-grams of the candidate of each order, its length, the nearest reference's."""
    matches, totals = [], []
    for order in ORDERS:
        has = _ngrams(candidate, order)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        matches.append(float((has & most).total()))
        totals.append(float(max(1, has.total())))
    nearest = min((len(reference) for reference in references), key=lambda length: (abs(length - len(candidate)), length))
    return [*matches, *totals, float(len(candidate)), float(nearest)]


def weighted_counts(candidate: Sequence[str], references: Sequence[Sequence[str]], language: str) -> list[float]:
    """Ten sums likewise, of n-grams of the references (recall), their single words weighted."""
    matches, totals = [], []
    for order in ORDERS:
        has = _ngrams(candidate, order)
        wanted = [_ngrams(reference, order) for reference in references]
        matches.append(sum(_weight(grams & has, language) for grams in wanted))
        totals.append(sum(max(1.0, _weight(grams, language)) for grams in wanted))
    return [*matches, *totals, float(len(candidate)), _WEIGHTED_LENGTH]


def bleu(totals: Tensor) -> Tensor:
    """BLEU of summed rows, (..., 10) -> (...): brevity penalty times the geometric mean of the four shares."""
    matches, counts, length, wanted = totals[..., :4], totals[..., 4:8], totals[..., 8], totals[..., 9]
    shares = torch.where(matches == 0, _SMOOTHING, matches) / counts.clamp_min(1e-12)
    penalty = torch.where(length > wanted, 1.0, torch.exp(1 - wanted / length.clamp_min(1e-12)))
    return torch.where(matches[..., 0] == 0, 0.0, penalty * shares.log().mean(-1).exp())


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def _weight(grams: Counter[tuple[str, ...]], language: str) -> float:
    """How many n-grams there are, single words by their weight."""
    return sum(n * (_OTHER_WORDS if len(gram) == 1 and gram[0] not in KEYWORDS[language] else 1.0) for gram, n in grams.items())
