"""Checks that compare what rows are about: rows unlike all others, languages, diversity."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lightning_ft_datatools.records import Record

LANGUAGES = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja",
    "ko", "lt", "lv", "mr", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sv", "sw", "ta", "te", "th", "tr", "uk", "ur",
    "vi", "zh",
)  # fmt: skip
"""Languages that are told apart (ISO 639-1)."""
_SURE = 0.95
NEIGHBOURS = 10
"""Most similar rows that are asked about a row."""
MOST = 20_000
"""Rows that are compared with each other; of more, an even sample."""
_CHARACTERS = 1000  # of a text: enough to tell what it is about
_BLOCK = 200
_DIRECTIONS = 64
_DIRECTED = 2000  # rows from which main directions are more than a few rows that happen to be alike
_HELD = 0.2  # of what a usual row has in the main directions
_RARER = 3.0  # standard deviations
_WORDS = 4  # that a row must have to be judged
_LEAST = 50  # rows from which neighbours mean something


@dataclass(frozen=True)
class Space:
    """Rows as TF-IDF vectors of their words, and their nearest neighbours."""

    records: Sequence[Record]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Space:
        """Of all rows, or of an even sample."""
        step = max(1, -(-len(records) // MOST))
        return cls(records[::step])

    @cached_property
    def neighbours(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosine similarities and numbers of the nearest rows of each row, (N, k) each, the nearest first."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]  # it has no types

        texts = [(record.question or record.answer)[:_CHARACTERS] for record in self.records]
        count = min(NEIGHBOURS, len(texts) - 1)
        try:
            vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
            vectors: Any = vectorizer.fit_transform(texts)
        except ValueError:  # not a single word
            return np.zeros((len(texts), count), np.float32), np.zeros((len(texts), count), np.int64)
        scores, found = [], []
        for start in range(0, len(texts), _BLOCK):
            block = (vectors[start : start + _BLOCK] @ vectors.T).toarray()
            block[np.arange(len(block)), np.arange(start, start + len(block))] = -1  # not itself
            nearest = np.argpartition(-block, count - 1, axis=1)[:, :count]
            values = np.take_along_axis(block, nearest, 1)
            order = np.argsort(-values, axis=1, kind="stable")
            found.append(np.take_along_axis(nearest, order, 1))
            scores.append(np.take_along_axis(values, order, 1))
        return np.concatenate(scores), np.concatenate(found)


def check_topic(space: Space) -> Iterator[tuple[str, Record, str]]:
    """Rows about something that the others are not about.

    Seen by two signs: the main directions of the data (latent semantic analysis, Deerwester et al. 1990) hold little of the
    row, or its words are rare in the data by far more than those of other rows. Of 20 rows of another kind among 500 to
    13,000 of one topic (banking77, MedQuAD, GSM8K, a persona's talks) this finds 19 in the mean of ten pairs (16 to 20), with
    at most 0.9 % of the others. Among rows of all topics (instructions, encyclopaedias) nothing is strange.
    """
    if len(space.records) < _LEAST:
        return
    from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped]  # it has no types
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [r.question if r.label is not None else f"{r.question} {r.answer}" for r in space.records]
    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b[^\W\d]\w+\b")
    try:
        vectors: Any = vectorizer.fit_transform([text[:_CHARACTERS] for text in texts])
    except ValueError:  # not a single word
        return
    words = np.diff(vectors.indptr)
    directions = TruncatedSVD(min(_DIRECTIONS, vectors.shape[1] - 1), random_state=0) if vectors.shape[1] > 1 else None
    with np.errstate(divide="ignore", invalid="ignore"):  # of rows that are all the same, its share of no variance
        held = np.ones(len(texts)) if directions is None else np.square(directions.fit_transform(vectors)).sum(1)
    rarity = np.asarray((vectors > 0) @ vectorizer.idf_[:, None]).ravel() / np.maximum(1, words)
    middle = float(np.median(rarity))
    # The standard deviation of a normal distribution by its middle half, and by its upper end where that is wider.
    spread = max(float(np.median(np.abs(rarity - middle))) * 1.4826, (float(np.quantile(rarity, 0.95)) - middle) / 1.645) or 1.0
    strange = rarity > middle + _RARER * spread
    if len(texts) >= _DIRECTED:
        strange |= held < _HELD * np.median(held)
    for i in np.flatnonzero(strange & (words >= _WORDS)).tolist():
        detail = f"the data hold {100 * held[i]:.0f} % of what it says, of other rows {100 * float(np.median(held)):.0f} %"
        yield "off_topic", space.records[i], detail


def diversity(records: Sequence[Record], space: Space) -> dict[str, float]:
    """Distinct-1 and distinct-2 of the answers (Li et al. 2016, arXiv:1510.03055) and the mean similarity of prompts.

    Distinct-n is the share of different n-grams among all; it falls with the number of words, so that it is taken of the
    first 100,000 words.
    """
    if not records:
        return {}
    words: list[str] = []
    for record in records:
        words += re.findall(r"\w+", record.answer.lower())
        if len(words) >= 100_000:
            break
    words = words[:100_000]
    out = {}
    for n in (1, 2):
        grams = list(zip(*(words[i:] for i in range(n)), strict=False))
        out[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    if len(space.records) > 1:
        out["nearest_similarity"] = float(space.neighbours[0][:, 0].clip(0).mean())
    return out


def languages(records: Sequence[Record]) -> list[str | None]:
    """The language of each row by its letters (ISO 639-1), None where there are too few of them to tell."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]  # it has no types

    # Few more than people train on: Galician would take part of the certainty of Spanish, Bosnian all of Croatian's.
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LANGUAGES))
    found: list[str | None] = []
    for record in records:
        text = f"{record.question}\n{record.answer}"[:300]
        letters = sum(map(str.isalpha, text))
        if letters < 20 or letters < 0.6 * len(text):
            found.append(None)
            continue
        language, sure = identifier.classify(text)
        found.append(language if sure >= _SURE else None)
    return found


def check_languages(records: Sequence[Record], found: Sequence[str | None]) -> Iterator[tuple[str, Record, str]]:
    """Rows in another language than nine of ten."""
    counts = Counter(language for language in found if language)
    if not counts or sum(counts.values()) < _LEAST:
        return
    main, number = counts.most_common(1)[0]
    if number < 0.9 * sum(counts.values()):
        return
    for record, language in zip(records, found, strict=True):
        if language and language != main:
            yield "language", record, f"looks like '{language}', the others are '{main}'"


def balance(records: Sequence[Record]) -> Mapping[str, Mapping[str, int]]:
    """Examples by file, split, source and class, each where there is more than one."""
    columns: dict[str, list[str | None]] = {
        "file": [record.row.source for record in records],
        "split": [record.split for record in records],
        "source": [_named(record.row.values.get("source")) for record in records],
        "class": [record.label or _named(record.row.values.get("category")) for record in records],
    }
    out: dict[str, Mapping[str, int]] = {}
    for name, values in columns.items():
        counts = Counter(value for value in values if value is not None)
        if 1 < len(counts) <= 1000:
            out[name] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return out


def _named(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 80 else None
