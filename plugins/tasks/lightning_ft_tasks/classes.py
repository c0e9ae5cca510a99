"""Metrics of answers that are one of several classes, from counts per class.

Each comes twice, with the same arithmetic: `accuracy`, `macro_f1` ... read the answer that the model generated,
`choice_accuracy`, `choice_macro_f1` ... take the most likely one of the answers that the task allows.

The classes are what stands in the references (and, for the second family, what is allowed). An answer is a class where both
are equal after white space at both ends is stripped, as in `exact_match`; case counts, as classes may differ in it alone. An
answer that is none of the classes, an empty one too, is wrong: it lowers recall, and is in the last column of `confusion`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from lightning_ft.metric import Metric, RowMetric
from lightning_ft_tasks.answers import accepted, answer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from lightning_ft.types import ScoredRow

MOST_CLASSES = 1000
"""With more, the references are taken to be texts rather than classes: statistics per class would fill the memory."""
MATCHED = "strip:ends|case:mixed"
"""When an answer is a class, for the signatures of metrics."""
BINS = 15
"""Equally wide bins of confidence in the calibration error."""


def likelihoods(row: ScoredRow, metric: str) -> dict[str, float]:
    """Log-likelihood by allowed answer, in the order of names; one that is not a number is infinitely unlikely.

    None at all where the row was cut before its answer: that is a wrong answer.

    Raises:
        ValueError: the row was not asked.
    """
    if row.candidates is None:
        raise ValueError(f"{row.row}: expected likelihoods of the answers that the task allows for metric {metric}, got none")
    return {name: -math.inf if math.isnan(row.candidates[name]) else row.candidates[name] for name in sorted(row.candidates)}


def chosen(row: ScoredRow, metric: str, reads: str) -> str | None:
    """The answer: what was generated, or the most likely candidate, of equally likely ones the first by name; None: none."""
    if reads == "text":
        return answer_of(row, metric).strip()
    found = likelihoods(row, metric)
    return max(found, key=lambda name: found[name]).strip() if found else None


def meant(row: ScoredRow, answer: str | None) -> str:
    """The row's class: of several references the one that was answered, else the first."""
    references = [reference.strip() for reference in accepted(row)]
    return next((reference for reference in references if reference == answer), references[0])


def classes_of(rows: Iterable[ScoredRow], metric: str, reads: str) -> dict[str, int]:
    """Number of each class, by name in order.

    Raises:
        ValueError: a row has no reference (or no candidates), or there are more than `MOST_CLASSES`.
    """
    found: set[str] = set()
    for row in rows:
        found.update(reference.strip() for reference in accepted(row))
        if reads == "candidates":
            found.update(name.strip() for name in likelihoods(row, metric))
        refuse_texts(found, row)
    return {name: number for number, name in enumerate(sorted(found))}


def refuse_texts(found: set[str], row: ScoredRow) -> None:
    """An error where there are too many classes to be any."""
    if len(found) > MOST_CLASSES:
        raise ValueError(
            f"{row.row}: expected at most {MOST_CLASSES} different references, as of classes, got more; choose a metric of "
            "texts, such as token_f1"
        )


class Accuracy(RowMetric):
    """Share of generated answers that are the row's class; of several references any is right."""

    name: ClassVar[str] = "accuracy"
    percent: ClassVar[bool] = True

    @property
    def signature(self) -> str:
        """When an answer is the class."""
        return MATCHED

    def check(self, row: ScoredRow) -> None:
        """Refuse a row without a reference.

        Raises:
            ValueError: the row has none.
        """
        accepted(row)

    def score(self, row: ScoredRow) -> float:
        """1 where the answer is right, else 0.

        Raises:
            ValueError: the row lacks the answer or a reference.
        """
        answer = chosen(row, self.name, self.reads)
        return float(answer == meant(row, answer))


class ClassMetric(Metric):
    """A metric of three counts per class: rows that are of it, rows answered with it, and rows that are both."""

    percent: ClassVar[bool] = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes: dict[str, int] = {}
        """Number of each class, once `prepare` found them."""
        self.checked: set[str] = set()
        """Different references of the rows that `check` saw."""

    @property
    def signature(self) -> str:
        """When an answer is a class, and that another one is a wrong answer."""
        return f"{MATCHED}|other:wrong"

    def check(self, row: ScoredRow) -> None:
        """Refuse a row without a reference, and references that are too many to be classes.

        Raises:
            ValueError: it is one of these.
        """
        self.checked.update(reference.strip() for reference in accepted(row))
        if self.reads == "candidates":
            self.checked.update(name.strip() for name in row.candidates or ())
        refuse_texts(self.checked, row)

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        """Find the classes.

        Raises:
            ValueError: as `classes_of`.
        """
        self.classes = classes_of(rows, self.name, self.reads)

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """3 x classes numbers, of which one to three are 1.

        Raises:
            ValueError: the row lacks the answer or a reference, or `prepare` did not see its class.
        """
        answer = chosen(row, self.name, self.reads)
        wanted = meant(row, answer)
        if wanted not in self.classes:
            raise ValueError(f"{row.row}: metric {self.name} expected a class that `prepare` saw, got {wanted!r:.80}")
        size = len(self.classes)
        counts = [0.0] * (3 * size)
        counts[self.classes[wanted]] = 1.0
        if answer is not None and answer in self.classes:
            counts[size + self.classes[answer]] = 1.0
        if answer == wanted:
            counts[2 * size + self.classes[wanted]] = 1.0
        return counts


def by_class(totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of each class, answers of each, right ones of each: (..., 3 x classes) -> three (..., classes)."""
    rows, answers, right = totals.reshape(*totals.shape[:-1], 3, -1).unbind(-2)
    return rows, answers, right


def macro(share: Tensor, rows: Tensor, answers: Tensor) -> Tensor:
    """The mean over classes that a row or an answer has, (..., classes) -> (...); each counts the same. 0 without any."""
    present = (rows + answers) > 0
    return torch.where(present, share, 0.0).sum(-1) / present.sum(-1).clamp_min(1)


class MacroPrecision(ClassMetric):
    """Mean over classes of right answers / answers of the class (0 where there is none), of generated answers.

    A class that neither a row nor an answer has is left out, as in scikit-learn.
    """

    name: ClassVar[str] = "macro_precision"

    def finish(self, totals: Tensor) -> Tensor:
        """From summed counts, (..., 3 x classes) -> (...)."""
        rows, answers, right = by_class(totals)
        return macro(right / answers.clamp_min(1), rows, answers)


class MacroRecall(ClassMetric):
    """Mean over classes of right answers / rows of the class (0 where there is none), of generated answers."""

    name: ClassVar[str] = "macro_recall"

    def finish(self, totals: Tensor) -> Tensor:
        """From summed counts, (..., 3 x classes) -> (...)."""
        rows, answers, right = by_class(totals)
        return macro(right / rows.clamp_min(1), rows, answers)


class MacroF1(ClassMetric):
    """Mean over classes of F1 = 2 right / (rows + answers of the class), of generated answers.

    Not the F1 of mean precision and recall. With rows a, a, b and answers a, b, b: F1 is 2/3 for a and 2/3 for b.
    """

    name: ClassVar[str] = "macro_f1"

    def details(self, rows: Sequence[ScoredRow]) -> Mapping[str, Any]:
        """The classes, and `confusion` of them: by the true class, answers of each class and of none."""
        classes, matrix = confusion(rows, "candidates" if self.reads == "candidates" else "text")
        return {"classes": list(classes), "confusion": matrix}

    def finish(self, totals: Tensor) -> Tensor:
        """From summed counts, (..., 3 x classes) -> (...)."""
        rows, answers, right = by_class(totals)
        return macro(2 * right / (rows + answers).clamp_min(1), rows, answers)


class Mcc(ClassMetric):
    """Correlation of classes and generated answers, -1 to 1 (Gorodkin 2004, R_K; Matthews 1975 for two classes).

    With t_k rows and p_k answers of class k, c right ones of s: (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2)
    (s^2 - sum_k t_k^2)); 0 where all rows or all answers are of one class. Answers of no class are one further k.

    Rows a, a, b with answers a, b, b: c = 2, s = 3, p = (1, 2), t = (2, 1): (6 - 4) / sqrt((9 - 5) (9 - 5)) = 1/2.
    """

    name: ClassVar[str] = "mcc"
    percent: ClassVar[bool] = False

    def finish(self, totals: Tensor) -> Tensor:
        """From summed counts, (..., 3 x classes) -> (...)."""
        rows, answers, right = by_class(totals)
        every, other = rows.sum(-1), rows.sum(-1) - answers.sum(-1)
        covariance = right.sum(-1) * every - (rows * answers).sum(-1)
        spread = (every**2 - answers.square().sum(-1) - other**2) * (every**2 - rows.square().sum(-1))
        return torch.where(spread > 0, covariance / spread.clamp_min(1).sqrt(), torch.zeros_like(covariance))


class ChoiceAccuracy(Accuracy):
    """Share of rows whose most likely allowed answer is the row's class."""

    name: ClassVar[str] = "choice_accuracy"
    reads: ClassVar[Literal["tokens", "text", "candidates"]] = "candidates"


class ChoiceMacroPrecision(MacroPrecision):
    """As `macro_precision`, of the most likely allowed answers."""

    name: ClassVar[str] = "choice_macro_precision"
    reads: ClassVar[Literal["tokens", "text", "candidates"]] = "candidates"


class ChoiceMacroRecall(MacroRecall):
    """As `macro_recall`, of the most likely allowed answers."""

    name: ClassVar[str] = "choice_macro_recall"
    reads: ClassVar[Literal["tokens", "text", "candidates"]] = "candidates"


class ChoiceMacroF1(MacroF1):
    """As `macro_f1`, of the most likely allowed answers."""

    name: ClassVar[str] = "choice_macro_f1"
    reads: ClassVar[Literal["tokens", "text", "candidates"]] = "candidates"


class ChoiceMcc(Mcc):
    """As `mcc`, of the most likely allowed answers."""

    name: ClassVar[str] = "choice_mcc"
    reads: ClassVar[Literal["tokens", "text", "candidates"]] = "candidates"


class CalibrationError(Metric):
    """Expected calibration error: how far confidence is from being right (Guo et al. 2017, arXiv:1706.04599, equation 3).

    Confidence is the probability of the most likely allowed answer, a softmax over the log-likelihoods of all. Rows are put
    into 15 bins ((m - 1) / 15, m / 15] of it: ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|.

    Two rows of confidence 0.8, one right: |1 - 1.6| / 2 = 0.3.
    """

    name: ClassVar[str] = "calibration_error"
    reads: ClassVar[Literal["tokens", "text", "candidates"]] = "candidates"
    percent: ClassVar[bool] = True
    higher_is_better = False

    @property
    def signature(self) -> str:
        """Bins, and what confidence is."""
        return f"bins:{BINS}|width:equal|norm:l1|conf:softmax"

    def check(self, row: ScoredRow) -> None:
        """Refuse a row without a reference.

        Raises:
            ValueError: the row has none.
        """
        accepted(row)

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """By bin: sum of confidence, right answers, rows.

        Raises:
            ValueError: the row has no candidates or no reference.
        """
        answer = chosen(row, self.name, self.reads)
        sure = confidence(likelihoods(row, self.name))
        counts = [0.0] * (3 * BINS)
        place = 3 * min(max(math.ceil(sure * BINS) - 1, 0), BINS - 1)
        counts[place : place + 3] = (sure, float(answer == meant(row, answer)), 1.0)
        return counts

    def finish(self, totals: Tensor) -> Tensor:
        """From summed counts, (..., 45) -> (...)."""
        sure, right, rows = totals.reshape(*totals.shape[:-1], BINS, 3).unbind(-1)
        apart: Tensor = (right - sure).abs().sum(-1)
        return apart / rows.sum(-1).clamp_min(1)


def confidence(found: dict[str, float]) -> float:
    """Probability of the likeliest among the candidates; all the same where each is infinitely unlikely, 0 without any."""
    if not found:
        return 0.0
    top = max(found.values())
    return 1 / len(found) if top == -math.inf else 1 / math.fsum(math.exp(value - top) for value in found.values())


def confusion(
    rows: Sequence[ScoredRow], reads: Literal["text", "candidates"] = "text"
) -> tuple[tuple[str, ...], list[list[int]]]:
    """How often rows of each class were answered with each.

    Args:
        rows: All of them with an answer.
        reads: `text`: generated answers; `candidates`: the most likely of those that are allowed.

    Returns:
        The names of the C classes, and C rows (the true class) of C + 1 numbers: answers of each class in the same order, then
        those that are of none.

    Raises:
        ValueError: as `classes_of`, or a row lacks the answer.
    """
    classes = classes_of(rows, "confusion", reads)
    matrix = [[0] * (len(classes) + 1) for _ in classes]
    for row in rows:
        answer = chosen(row, "confusion", reads)
        matrix[classes[meant(row, answer)]][len(classes) if answer is None else classes.get(answer, len(classes))] += 1
    return tuple(classes), matrix
