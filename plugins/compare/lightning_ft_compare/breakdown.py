"""Where two models differ: row by row, by a column, by the length of the prompt, and by class."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lightning_ft.types import Classified, Preference
from lightning_ft_compare.evaluations import prompt_of
from lightning_ft_compare.results import Change, Confusion, Wins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.evaluation import Evaluation
    from lightning_ft.metric import Metric
    from lightning_ft.types import ScoredRow
    from lightning_ft_compare.evaluations import Side

LIKELIHOOD = "likelihood"
"""The score of a row that is no pair and not a metric's: the summed log-likelihood of its given answer."""
SAME = 1e-6
"""Relative difference of likelihoods up to which they are the same, as batches differ by so much."""
SHOWN = 5
"""Rows in either direction that a report shows."""
MOST_GROUPS = 20
"""Values of a column that a breakdown shows, the most frequent first."""
MOST_CLASSES = 20
"""Classes of a confusion matrix, the most frequent first; all others are one."""
OTHER = "(another)"
"""An answer that is none of the classes, or one of the rare ones."""

Scores = list[tuple[float, float] | None]
"""Score of each row by baseline and model, the higher the better; None where one of them has none."""


def row_scores(metric: Metric, base: Evaluation, other: Evaluation) -> Scores:
    """Scores of the rows by a metric that is a mean over rows and has a better side, turned so that higher is better."""
    sign = 1 if metric.higher_is_better else -1
    pairs = zip((sign * base.scores(metric.name)).tolist(), (sign * other.scores(metric.name)).tolist(), strict=True)
    return [pair if math.isfinite(pair[0]) and math.isfinite(pair[1]) else None for pair in pairs]


def likelihoods(base: Evaluation, other: Evaluation) -> Scores:
    """Log-likelihoods (nats) of the rows' given answers; sums, which do not depend on how a tokenizer cuts the text.

    Pairs have none here: training on which answer is the better one may rightly lower the likelihood of both.
    """
    pairs = zip(base.rows, other.rows, strict=True)
    scores = [(-a.nll, -b.nll) if a.tokens and b.tokens and not isinstance(a.example, Preference) else None for a, b in pairs]
    return [pair if pair and math.isfinite(pair[0]) and math.isfinite(pair[1]) else None for pair in scores]


def wins(of: str, scores: Scores) -> Wins:
    """In how many rows which of the two is better."""
    signs = Counter(_sign(pair) for pair in scores if pair is not None)
    return Wins(of, signs[1], signs[0], signs[-1])


def _sign(pair: tuple[float, float]) -> int:
    base, other = pair
    if abs(other - base) <= SAME * max(abs(base), abs(other)):
        return 0
    return 1 if other > base else -1


def changes(
    base: Evaluation, other: Evaluation, scores: Scores, further: Scores, *, sign: int, turned: bool
) -> tuple[Change, ...]:
    """The rows that changed most in one direction; of those with equal scores the ones whose likelihoods changed most.

    Args:
        base: The baseline's evaluation.
        other: The model's.
        scores: What ranks.
        further: What decides between equal ones.
        sign: 1: the rows that became better; -1: worse.
        turned: Whether `scores` are those of a metric of which less is better, with the sign changed.
    """

    def moved(values: Scores, i: int) -> float:
        pair = values[i]
        return 0.0 if pair is None else sign * (pair[1] - pair[0])

    found = [i for i, pair in enumerate(scores) if pair is not None and _sign(pair) == sign]
    found.sort(key=lambda i: (-moved(scores, i), -moved(further, i)))
    back = -1 if turned else 1
    shown = [(i, scores[i] or (0.0, 0.0)) for i in found[:SHOWN]]
    return tuple(_change(base.rows[i], other.rows[i], (back * a, back * b)) for i, (a, b) in shown)


def _change(base: ScoredRow, other: ScoredRow, scores: tuple[float, float]) -> Change:
    reference = base.references[0] if base.references else None
    return Change(base.row, prompt_of(base.example), reference, (base.prediction, other.prediction), scores)


def by_column(evaluation: Evaluation, column: str) -> dict[str, list[int]]:
    """Rows of each value of a column, the most frequent values first; rows without one belong nowhere."""
    places = evaluation.places(column)
    return dict(sorted(places.items(), key=lambda item: -len(item[1]))[:MOST_GROUPS])


def by_length(rows: Sequence[ScoredRow]) -> dict[str, list[int]]:
    """Rows by quarters of the prompts' lengths; fewer where many prompts are of one length."""
    lengths = np.array([len(prompt_of(row.example)) for row in rows])
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower"))
    places = np.searchsorted(edges, lengths, side="left")
    groups = {}
    for place in range(len(edges) + 1):
        members = np.flatnonzero(places == place)
        if len(members):
            low, high = lengths[members].min(), lengths[members].max()
            groups[f"{low:,} characters" if low == high else f"{low:,} to {high:,} characters"] = members.tolist()
    return groups


def confusion(side: Side) -> Confusion | None:
    """Which class was taken for which; None where rows are not classified texts or nothing was answered.

    The answer is the most likely class where likelihoods of all classes are there, of equally likely ones the first by name,
    else the generated text. It is the class that it equals but for white space at its ends, else one that it equals but for
    case, too.
    """
    rows = [row for row in side.evaluation.rows if isinstance(row.example, Classified)]
    rows = [row for row in rows if row.prediction is not None or row.candidates]
    if not rows:
        return None
    labels = Counter(row.example.label for row in rows if isinstance(row.example, Classified))
    ranked = sorted(labels, key=lambda label: (-labels[label], label))
    classes = [*sorted(ranked[:MOST_CLASSES]), OTHER]
    known = {label.strip().lower(): label for label in sorted(labels)} | {label.strip(): label for label in labels}
    place = {label: i for i, label in enumerate(classes)}
    counts = [[0] * len(classes) for _ in classes]
    for row in rows:
        assert isinstance(row.example, Classified)
        best = max(sorted(row.candidates), key=row.candidates.__getitem__) if row.candidates else row.prediction or ""
        answer = known.get(best.strip(), known.get(best.strip().lower(), OTHER))
        counts[place.get(row.example.label, len(classes) - 1)][place.get(answer, len(classes) - 1)] += 1
    if not any(counts[-1]) and not any(row[-1] for row in counts):
        classes, counts = classes[:-1], [row[:-1] for row in counts[:-1]]
    return Confusion(side.letter, tuple(classes), tuple(tuple(row) for row in counts))
