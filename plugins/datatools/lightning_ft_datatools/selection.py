"""Fewer rows that say as much."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lightning_ft_datatools.reading import Names
    from lightning_ft_datatools.records import Record

WAYS = ("diverse", "quality")
_CHARACTERS = 1000  # of a row that are compared
QUALITY = ("long_enough", "says_something", "own_words", "well_formed")
"""Parts of the quality score, each from 0 to 1; the score is their mean."""


def select(
    names: Names, count: int, *, by: str = "diverse", balance: str | None = None, task: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The selected rows in the order of the files, as `data select` writes them; always the same ones.

    Args:
        names: files, globs and folders.
        count: rows to keep.
        by: `diverse` or `quality`.
        balance: a column of whose values as many rows each are kept, as far as there are.
        task: by name, or None to let the columns decide.
        columns: as for `fit`.

    Raises:
        DataError: rows cannot be read or formatted.
        UsageError: an unknown way or column, or fewer rows than wanted.
    """
    from lightning_ft_datatools.reading import read
    from lightning_ft_datatools.records import Record

    if by not in WAYS:
        raise UsageError(f"Expected --by to be one of {', '.join(WAYS)}; got '{by}'.")
    reading = read(names, task, columns or {})
    # Of a row that stands for several the first example decides.
    records = [Record(row, next(reading.examples([row]))[1]) for row in reading.rows]
    if not 1 <= count <= len(records):
        raise UsageError(f"Expected --count to be between 1 and {len(records):,}, the number of rows; got {count:,}.")
    scores = quality(records) if by == "quality" else None
    chosen: list[int] = []
    for members, number in _shares(records, count, balance):
        part = [records[i] for i in members]
        best = most_different(part, number) if scores is None else _best([scores[i] for i in members], number)
        chosen += [members[i] for i in best]
    return [dict(records[i].row.values) | (scores[i] if scores else {}) for i in sorted(chosen)]


def _shares(records: Sequence[Record], count: int, balance: str | None) -> list[tuple[list[int], int]]:
    """The rows of each value of the balanced column and how many of them to keep; without one, all rows."""
    if balance is None:
        return [(list(range(len(records))), count)]
    groups: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        value = record.label if balance == "class" else record.row.values.get(balance)
        if value is not None:
            groups[str(value)].append(i)
    if not groups:
        known = ", ".join(sorted({key for record in records[:100] for key in record.row.values}))
        raise UsageError(f"Expected a column of the rows ({known}), got '{balance}'; check its name.")
    kept = dict.fromkeys(groups, 0)
    # One more of each in turn, so that what a small class lacks is shared by the others.
    for name in itertools.cycle(sorted(groups)):
        if sum(kept.values()) == min(count, sum(map(len, groups.values()))):
            break
        kept[name] += kept[name] < len(groups[name])
    return [(groups[name], kept[name]) for name in groups if kept[name]]


def most_different(records: Sequence[Record], count: int) -> list[int]:
    """Numbers of `count` rows such that every other row is near one of them: greedy k-centre (Gonzalez 1985).

    Rows are TF-IDF vectors of their words under the cosine distance; the first centre is the row nearest to the mean.
    The greatest distance from a row to its centre is at most twice the least possible one.
    """
    if count >= len(records):
        return list(range(len(records)))
    vectors = _vectors(records)
    nearest = np.asarray(vectors @ np.asarray(vectors.mean(axis=0)).T).ravel()
    found = [int(nearest.argmax())]
    closeness: NDArray[np.float32] = np.full(len(records), -1, dtype=np.float32)
    while len(found) < count:
        np.maximum(closeness, (vectors @ vectors[found[-1]].T).toarray().ravel(), out=closeness)
        closeness[found[-1]] = np.inf
        found.append(int(closeness.argmin()))
    return sorted(found)


def _vectors(records: Sequence[Record]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]  # it has no types

    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
    texts = [f"{record.question}\n{record.answer}"[:_CHARACTERS] for record in records]
    try:
        return vectorizer.fit_transform(texts).tocsr()
    except ValueError:  # no words, only signs
        return vectorizer.set_params(token_pattern=r"\S").fit_transform(texts).tocsr()


def quality(records: Sequence[Record]) -> list[dict[str, float]]:
    """For each row the parts of its score and the score itself, as columns.

    `long_enough`: characters of the answer over the median, at most 1. `says_something`: 0 for an answer that says nothing.
    `own_words`: share of the answer's words that are not in the question. `well_formed`: half for a beginning and half for
    an end as in most rows.
    """
    from lightning_ft_datatools.checks.style import common_form
    from lightning_ft_datatools.checks.text import is_vague

    median = float(np.median([len(record.answer) for record in records])) or 1.0
    formed = common_form([record.answer for record in records])
    out = []
    for record, form in zip(records, formed, strict=True):
        words, asked = set(record.answer.lower().split()), set(record.question.lower().split())
        parts = {
            "long_enough": min(1.0, len(record.answer) / median),
            "says_something": 0.0 if is_vague(record.answer) else 1.0,
            "own_words": len(words - asked) / max(1, len(words)),
            "well_formed": form,
        }
        out.append({**{k: round(v, 4) for k, v in parts.items()}, "quality": round(sum(parts.values()) / len(parts), 4)})
    return out


def _best(scores: Sequence[Mapping[str, float]], count: int) -> list[int]:
    """Numbers of the rows with the highest score; of equal ones the first."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i]["quality"], i))[:count])
