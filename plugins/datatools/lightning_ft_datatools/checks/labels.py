"""Suspected wrong labels."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lightning_ft_datatools.records import Record

FOLDS = 5
"""Parts of which each is judged by a classifier that was trained on the others."""
LEAST_RATIO = 0.03
"""Probability of the given label over that of the likeliest one, below which the label is suspected.

Of 200 labels that were exchanged at random this finds 96 % on banking77 and on clinc150, with 0.9 % and 0.4 % of the other rows
suspected, some of which are wrong in the published files.
"""
LEAST_SURE = 0.1
"""Probability that the likeliest label must have at least."""
_CHARACTERS = 1000  # of a text


def check_labels(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Labels that a classifier, trained on other rows, finds next to impossible (Northcutt et al. 2021, arXiv:1911.00068).

    The classifier is a logistic regression over TF-IDF vectors of words and of parts of words. Classes with fewer than five
    rows are left out.
    """
    counts = Counter(record.label for record in records)
    judged = [record for record in records if record.label is not None and counts[record.label] >= FOLDS]
    if len({record.label for record in judged}) < 2:
        return
    classes, given = np.unique([str(record.label) for record in judged], return_inverse=True)
    chances = _chances([record.question[:_CHARACTERS] for record in judged], given)
    own = chances[np.arange(len(judged)), given]
    best = chances.argmax(1)
    for i in np.flatnonzero((best != given) & (own < LEAST_RATIO * chances.max(1)) & (chances.max(1) > LEAST_SURE)).tolist():
        yield "label", judged[i], f"is '{judged[i].label}', reads like '{classes[best[i]]}'"


def _chances(texts: Sequence[str], given: NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows, classes) probabilities, each row's from a classifier that has not seen it."""
    from scipy.sparse import hstack  # type: ignore[import-untyped]  # it has no types
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]  # it has no types
    from sklearn.linear_model import SGDClassifier  # type: ignore[import-untyped]  # it has no types
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # type: ignore[import-untyped]  # it has no types

    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
    parts = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32, max_features=50_000)
    made: list[Any] = []
    for vectorizer in (words, parts):
        with contextlib.suppress(ValueError):  # texts of signs alone have no words
            made.append(vectorizer.fit_transform(texts))
    if not made:
        return np.full((len(texts), len(set(given.tolist()))), 1.0)
    vectors: Any = hstack(made).tocsr()
    classifier = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=None, random_state=0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found: NDArray[np.float64] = cross_val_predict(classifier, vectors, given, cv=folds, method="predict_proba")
    return found
