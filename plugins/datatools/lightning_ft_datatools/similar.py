"""Pairs of texts that are nearly the same: MinHash for the candidates, their words for the decision."""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft_datatools.records import bare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Shingles = NDArray[np.uint32]

NEAR = 0.93
"""Share of their words from which two texts are nearly the same: one word of fifteen may be another."""
SIZE = 5
"""Characters of a shingle."""
PERMUTATIONS = 128
CANDIDATE = 0.45
"""Jaccard index of two texts' shingles from which their words are compared."""
_FEW = 12
"""Different words up to which slips are looked for: each is compared with each."""
_TYPO = 0.8
"""Likeness (`difflib`) from which two words are one word with a slip."""
_FILLER = frozenset({
    "please", "kindly", "the", "a", "an", "so", "and", "just", "very", "really", "now", "then", "also", "can", "could", "would",
    "you", "me", "your", "my", "it", "is",
})  # fmt: skip
"""Words that people add without asking for anything else."""
_COMMON = 0.05
"""Shingles of more rows than this share belong to wording that all have, such as a fixed instruction."""
_MANY = 40
"""Rows from which a shingle can be common at all."""
_LONGEST = 20_000  # characters of a text that are looked at


def near_pairs(texts: Sequence[str], least: float = NEAR) -> Iterator[tuple[int, int, float]]:
    """Pairs `(i, j, likeness)` with i < j, ordered by j, then by likeness from the largest.

    Candidates come from locality-sensitive hashing of MinHash signatures over character 5-grams, in lower case and without
    punctuation (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4), after those that more
    than 5 % of at least 800 texts have are taken out: two rows are not alike because they share a fixed wording. What
    counts is `likeness`.
    """
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]  # it has no types

    plain = [bare(text[:_LONGEST]) for text in texts]
    index: Any = MinHashLSH(threshold=CANDIDATE, num_perm=PERMUTATIONS)
    empty: Any = MinHash(num_perm=PERMUTATIONS, hashfunc=_same)
    for j, own in enumerate(_distinctive([shingles(text) for text in plain])):
        if not len(own):
            continue
        signature = empty.copy()  # a new one would draw its permutations again
        signature.update_batch(own.tolist())
        words = Counter(plain[j].split())
        alike = [(likeness(Counter(plain[i].split()), words), i) for i in index.query(signature)]
        for share, i in sorted(alike, key=lambda pair: (-pair[0], pair[1])):
            if share >= least:
                yield i, j, share
        index.insert(j, signature)


def pairs_of_different(texts: Sequence[str], least: float = NEAR) -> Iterator[tuple[int, int, float]]:
    """As `near_pairs`, in no order, where only what hangs together matters: of equal texts the first stands for all.

    So a thousand times the same prompt is a thousand pairs, not half a million.
    """
    first: dict[str, int] = {}
    different = []
    for number, text in enumerate(texts):
        key = bare(text[:_LONGEST])
        if (same := first.setdefault(key, number)) == number:
            different.append(number)
        elif key:
            yield same, number, 1.0
    for one, other, share in near_pairs([texts[number] for number in different], least):
        yield different[one], different[other], share


def likeness(one: Counter[str], other: Counter[str]) -> float:
    """The share of the longer text's words that the two have in common.

    A word with a slip counts as the word, one of politeness or grammar that only one has counts not at all; another
    number or another noun counts.
    """
    total = max(one.total(), other.total())
    if abs(one.total() - other.total()) > 0.5 * total:
        return 0.0
    left, right = one - other, other - one
    first, second = ([word for word in side.elements() if word not in _FILLER] for side in (left, right))
    if max(len(first), len(second)) <= _FEW:
        for word in list(first):
            twin = next((w for w in second if _slipped(word, w)), None)
            if twin is not None:
                first.remove(word)
                second.remove(twin)
    return 1 - max(len(first), len(second)) / max(1, total)


def _slipped(one: str, other: str) -> bool:
    shorter, total = min(len(one), len(other)), len(one) + len(other)
    if shorter <= 3 or not one.isalpha() or 2 * shorter < _TYPO * total:
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.quick_ratio() >= _TYPO and matcher.ratio() >= _TYPO  # the first is never below the second


def shingles(text: str) -> Shingles:
    """Hashes of a text's character 5-grams, sorted, each once; of a shorter text its own hash."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if not len(codes):
        return codes.astype(np.uint32)
    count = max(1, len(codes) - SIZE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(min(SIZE, len(codes))):
        hashes = hashes * np.uint64(1_000_003) + codes[offset : offset + count]
    hashes ^= hashes >> np.uint64(31)
    return np.unique((hashes * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.uint32))


def _distinctive(sets: list[Shingles]) -> list[Shingles]:
    """The sets without common shingles; a text of little else keeps its own."""
    if not sets:
        return sets
    values, counts = np.unique(np.concatenate(sets), return_counts=True)
    common = values[counts > max(_MANY, _COMMON * len(sets))]
    kept = []
    for own in sets:
        rest = own[~np.isin(own, common, assume_unique=True)] if len(common) else own
        kept.append(rest if len(rest) >= SIZE else own)
    return kept


def _same(value: int) -> int:
    """The values are hashes already."""
    return value
