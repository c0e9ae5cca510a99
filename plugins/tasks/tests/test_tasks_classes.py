from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_tasks.classes import (
    BINS,
    MOST_CLASSES,
    Accuracy,
    CalibrationError,
    ChoiceAccuracy,
    ChoiceMacroF1,
    ChoiceMacroPrecision,
    ChoiceMacroRecall,
    ChoiceMcc,
    MacroF1,
    MacroPrecision,
    MacroRecall,
    Mcc,
    confidence,
    confusion,
)
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
    multiclass_precision,
    multiclass_recall,
)

from lightning_ft.evaluation import Evaluation
from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lightning_ft.metric import Metric

PAIRS: dict[type[Metric], type[Metric]] = {
    Accuracy: ChoiceAccuracy,
    MacroPrecision: ChoiceMacroPrecision,
    MacroRecall: ChoiceMacroRecall,
    MacroF1: ChoiceMacroF1,
    Mcc: ChoiceMcc,
}
"""The metric of generated answers and that of candidates."""
ALL: list[type[Metric]] = [*PAIRS, *PAIRS.values(), CalibrationError]
LABELS = ["lost card", "balance", "\u4f59\u989d", "\u0631\u0635\u064a\u062f", "\U0001f44d", "Lost card", "0"]


def text(answer: str | None, *references: str) -> ScoredRow:
    return ScoredRow("f:1", Conversation(()), prediction=answer, references=references)


def choice(candidates: Mapping[str, float] | None, *references: str) -> ScoredRow:
    return ScoredRow("f:1", Conversation(()), candidates=candidates, references=references)


def made(metric: type[Metric], rows: Sequence[ScoredRow]) -> Metric:
    ready = metric()
    ready.prepare(rows)
    ready.update(rows)
    return ready


def value(metric: type[Metric], rows: Sequence[ScoredRow]) -> float:
    return float(made(metric, rows).compute())


def drawn(seed: int, size: int = 60, classes: int = 7) -> tuple[list[str], list[str]]:
    """True classes, some of them rare, and answers that are right more often than not."""
    draw = random.Random(seed)
    true = draw.choices(LABELS[:classes], weights=range(1, classes + 1), k=size)
    return true, [label if draw.random() < 0.6 else draw.choice(LABELS[:classes]) for label in true]


def choices(seed: int, size: int = 80) -> list[ScoredRow]:
    """Rows with likelihoods of all classes, more or less sure."""
    draw = random.Random(seed)
    true, _ = drawn(seed, size)
    return [choice({name: draw.gauss(3.0 * (name == label), 1.5) - 5 for name in LABELS}, label) for label in true]


def learned(true: Sequence[str], said: Sequence[str], classes: Sequence[str]) -> dict[type[Metric], float]:
    """What scikit-learn says; an answer that is no class is the class `none`, which is not averaged over."""
    theirs: Any = pytest.importorskip("sklearn.metrics")
    said = [answer if answer in classes else "none" for answer in said]
    present = [name for name in sorted(set(classes)) if name in true or name in said]
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    return {
        Accuracy: theirs.accuracy_score(true, said),
        MacroPrecision: theirs.precision_score(true, said, **macro),
        MacroRecall: theirs.recall_score(true, said, **macro),
        MacroF1: theirs.f1_score(true, said, **macro),
        Mcc: theirs.matthews_corrcoef(true, said),
    }


def torched(true: Sequence[str], said: Sequence[str]) -> dict[type[Metric], float]:
    """What torchmetrics says."""
    found, wanted = (torch.tensor([LABELS.index(label) for label in labels]) for labels in (said, true))
    kinds: Any = {"num_classes": len(LABELS), "average": "macro"}
    return {
        Accuracy: float(multiclass_accuracy(found, wanted, num_classes=len(LABELS), average="micro")),
        MacroPrecision: float(multiclass_precision(found, wanted, **kinds)),
        MacroRecall: float(multiclass_recall(found, wanted, **kinds)),
        MacroF1: float(multiclass_f1_score(found, wanted, **kinds)),
        Mcc: float(multiclass_matthews_corrcoef(found, wanted, num_classes=len(LABELS))),
    }


@pytest.mark.parametrize("metric", ALL)
def test_keeps_the_contract(metric: type[Metric]) -> None:
    check_metric(metric)


@pytest.mark.parametrize("seed", range(6))
def test_is_what_scikit_learn_and_torchmetrics_say(seed: int) -> None:
    true, said = drawn(seed, classes=2 + seed)
    rows = [text(f" {answer}\n", label) for label, answer in zip(true, said, strict=True)]
    by_scikit_learn, by_torchmetrics = learned(true, said, true), torched(true, said)
    for metric in PAIRS:
        assert value(metric, rows) == pytest.approx(by_scikit_learn[metric], abs=1e-12)
        assert value(metric, rows) == pytest.approx(by_torchmetrics[metric], abs=1e-6)  # it counts in float32


@pytest.mark.parametrize("seed", range(4))
def test_answers_that_are_no_class_are_wrong(seed: int) -> None:
    true, said = drawn(seed)
    draw = random.Random(seed + 100)
    said = [draw.choice(["", "I think: balance", "BALANCE", answer, answer]) for answer in said]
    rows = [text(answer, label) for label, answer in zip(true, said, strict=True)]
    for metric, expected in learned(true, said, true).items():
        assert value(metric, rows) == pytest.approx(expected, abs=1e-12)
    assert made(MacroF1, rows).table()[:, : len(set(true))].sum() == len(rows)


@pytest.mark.parametrize(("of_text", "of_choice"), PAIRS.items())
def test_both_families_count_alike(of_text: type[Metric], of_choice: type[Metric]) -> None:
    rows = choices(5)
    written = [text(max((v, name) for name, v in (row.candidates or {}).items())[1], *row.references) for row in rows]
    assert value(of_choice, rows) == value(of_text, written)
    assert of_choice.name == f"choice_{of_text.name}"


def test_by_hand() -> None:
    """Rows a, a, b with answers a, b, b."""
    rows = [text("a", "a"), text("b", "a"), text("b", "b")]
    assert value(Accuracy, rows) == pytest.approx(2 / 3)
    assert value(MacroPrecision, rows) == pytest.approx((1 + 1 / 2) / 2)
    assert value(MacroRecall, rows) == pytest.approx((1 / 2 + 1) / 2)
    assert value(MacroF1, rows) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert value(Mcc, rows) == pytest.approx(1 / 2)
    # classes a, b: rows (2, 1), answers (1, 2), right ones (1, 1)
    assert made(MacroF1, rows).table().sum(0).tolist() == [2, 1, 1, 2, 1, 1]
    # a row more of which nothing is said: it is one of b, and no answer
    rows.append(text("", "b"))
    assert value(Accuracy, rows) == pytest.approx(2 / 4)
    assert value(MacroPrecision, rows) == pytest.approx((1 + 1 / 2) / 2)
    assert value(MacroRecall, rows) == pytest.approx((1 / 2 + 1 / 2) / 2)
    # c = 2, s = 4, p = (1, 2, 1), t = (2, 2, 0): (8 - 6) / sqrt((16 - 6) (16 - 8))
    assert value(Mcc, rows) == pytest.approx(2 / math.sqrt(80))


def test_a_constant_answer_has_no_correlation() -> None:
    rows = [text("a", "a"), text("a", "a"), text("a", "b")]
    assert value(Accuracy, rows) == pytest.approx(2 / 3)
    assert value(Mcc, rows) == 0
    assert value(MacroF1, rows) == pytest.approx(0.8 / 2)


def test_of_several_references_any_is_right() -> None:
    rows = [text("b", "a", "b"), text("c", "a", "b")]
    assert value(Accuracy, rows) == pytest.approx(1 / 2)
    # the first row is one of b, the second, which is wrong, one of a; nothing is of c
    assert made(MacroRecall, rows).table().tolist() == [[0, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0]]


def test_case_makes_classes_and_ends_do_not() -> None:
    assert value(Accuracy, [text(" yes\n", "yes"), text("Yes", "yes")]) == pytest.approx(1 / 2)


def test_equally_likely_candidates_are_taken_by_name() -> None:
    assert value(ChoiceAccuracy, [choice({"b": -1.0, "a": -1.0}, "a")]) == 1
    assert value(ChoiceAccuracy, [choice({"b": math.nan, "a": -9.0}, "a")]) == 1
    assert value(ChoiceAccuracy, [choice({"b": -1.0, "c": -2.0}, "a")]) == 0


@pytest.mark.parametrize("metric", PAIRS)
def test_drawn_rows_are_scored_by_their_summed_statistics(metric: type[Metric]) -> None:
    """As a bootstrap does it. A class that neither the rows nor the answers of a draw have is not averaged over."""
    true, said = drawn(3, size=20)
    draws = torch.randint(20, (6, 20), generator=torch.Generator().manual_seed(3))
    ready = made(metric, [text(answer, label) for label, answer in zip(true, said, strict=True)])
    resampled = ready.finish(ready.table()[draws].sum(1))
    for those, got in zip(draws.tolist(), resampled.tolist(), strict=True):
        expected = learned([true[i] for i in those], [said[i] for i in those], true)[metric]
        assert got == pytest.approx(expected, abs=1e-12)
    assert any(set(true) != {true[i] for i in those} for those in draws.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_calibration_is_what_torchmetrics_says(seed: int) -> None:
    rows = choices(seed, size=300)
    likelihoods = torch.tensor([[(row.candidates or {})[name] for name in LABELS] for row in rows], dtype=torch.float64)
    wanted = torch.tensor([LABELS.index(row.references[0]) for row in rows])
    expected = multiclass_calibration_error(likelihoods.softmax(-1), wanted, num_classes=len(LABELS), n_bins=BINS, norm="l1")
    assert value(CalibrationError, rows) == pytest.approx(float(expected), abs=1e-6)  # it counts in float32
    assert float(expected) > 0.02


def test_calibration_by_hand() -> None:
    """Two rows of confidence 0.8, one right: |1 - 1.6| / 2; with one of 0.6, right, in a bin of its own: (0.6 + 0.4) / 3."""
    likely = {"a": math.log(0.8), "b": math.log(0.2)}
    rows = [choice(likely, "a"), choice(likely, "b")]
    assert value(CalibrationError, rows) == pytest.approx(0.3)
    rows.append(choice({"a": math.log(6), "b": math.log(4)}, "a"))
    assert value(CalibrationError, rows) == pytest.approx(1 / 3)
    # (14/15, 1] is the last bin: certain and right is no error, wherever rounding puts it
    assert value(CalibrationError, [choice({"a": 0.0, "b": -900.0}, "a")]) == 0
    assert made(CalibrationError, [choice({"a": 0.0, "b": -900.0}, "a")]).table()[0, -3:].tolist() == [1, 1, 1]


def test_a_confidence_between_two_bins_is_in_the_lower() -> None:
    """Of five equally likely candidates each has 3/15: the third bin, which is (2/15, 3/15]."""
    table = made(CalibrationError, [choice(dict.fromkeys("abcde", -1.0), "a")]).table()
    assert table.nonzero().tolist() == [[0, 6], [0, 7], [0, 8]]


def test_a_model_that_finds_nothing_likely_is_not_sure() -> None:
    assert confidence({"a": -math.inf, "b": -math.inf}) == 0.5
    assert value(CalibrationError, [choice({"a": math.nan, "b": math.nan}, "b")]) == 0.5


def test_a_row_that_was_cut_before_its_answer_is_wrong() -> None:
    """It has an empty set of candidates; with one right row there is one of two, and one row of no answer."""
    rows = [choice({"a": 0.0, "b": -900.0}, "a"), choice({}, "b")]
    assert value(ChoiceAccuracy, rows) == value(ChoiceMacroRecall, rows) == 0.5
    assert made(ChoiceMcc, rows).table().tolist() == [[1, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
    assert made(CalibrationError, rows[1:]).table().nonzero().tolist() == [[0, 2]]
    assert confusion(rows, "candidates") == (("a", "b"), [[1, 0, 0], [0, 0, 1]])


def test_confusion_by_hand() -> None:
    rows = [text("a", "a"), text("b ", "a"), text("b", "b"), text("", "b"), text("A", "b")]
    assert confusion(rows) == (("a", "b"), [[1, 1, 0], [0, 1, 2]])
    asked = [choice({"a": -1.0, "b": -2.0, "c": -0.5}, "a"), choice({"a": -1.0, "b": -2.0, "c": -3.0}, "b")]
    assert confusion(asked, "candidates") == (("a", "b", "c"), [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_confusion_is_what_the_metrics_count() -> None:
    true, said = drawn(8)
    rows = [text(answer, label) for label, answer in zip(true, said, strict=True)]
    labels, matrix = confusion(rows)
    counted = torch.tensor(matrix)
    assert list(labels) == sorted(set(true))
    sums = [counted.sum(1), counted[:, :-1].sum(0), counted[:, :-1].diagonal()]
    assert torch.cat(sums).tolist() == made(Mcc, rows).table().sum(0).tolist()


def test_what_is_missing_is_said_before_and_after() -> None:
    for metric in ALL:
        with pytest.raises(ValueError, match="f:1: expected a reference, got none"):
            metric().check(text(None))
        metric().check(text(None, "a"))
    with pytest.raises(ValueError, match="f:1: expected a generated answer for metric macro_f1, got none"):
        made(MacroF1, [text(None, "a")])
    with pytest.raises(ValueError, match="f:1: expected likelihoods of the answers that the task allows for metric choice_mcc"):
        made(ChoiceMcc, [choice(None, "a")])
    with pytest.raises(ValueError, match="f:1: metric mcc expected a class that `prepare` saw, got 'a'"):
        Mcc().statistics(text("a", "a"))


def test_texts_are_not_classes() -> None:
    """Refused before a model answers, as soon as there are too many different ones."""
    rows = [text("x", str(i)) for i in range(MOST_CLASSES + 1)]
    metric = MacroF1()
    for one in rows[:-1]:
        metric.check(one)
    with pytest.raises(ValueError, match="f:1: expected at most 1000 different references, as of classes"):
        metric.check(rows[-1])
    with pytest.raises(ValueError, match="choose a metric of texts"):
        confusion(rows)


def test_the_likeliest_classes_by_hand() -> None:
    """a, b, b are right; a, a, b are the likeliest.

    Precision of a 1/2, of b 1; recall of a 1, of b 1/2; F1 of both 2/3. With b as the positive class one is right, one
    missed, none wrongly found and one rightly not: (1 * 1 - 0 * 1) / sqrt(1 * 2 * 1 * 2) = 1/2.
    """
    sure_of = {"a": {"a": -1.0, "b": -2.0}, "b": {"a": -2.0, "b": -1.0}}
    rows = [choice(sure_of[said], right) for said, right in (("a", "a"), ("a", "b"), ("b", "b"))]
    assert value(ChoiceAccuracy, rows) == pytest.approx(2 / 3)
    assert value(ChoiceMacroPrecision, rows) == pytest.approx((1 / 2 + 1) / 2)
    assert value(ChoiceMacroRecall, rows) == pytest.approx((1 + 1 / 2) / 2)
    assert value(ChoiceMacroF1, rows) == pytest.approx(2 / 3)
    assert value(ChoiceMcc, rows) == pytest.approx(1 / 2)


def test_an_evaluation_keeps_the_confusion_of_classes(tmp_path: Path) -> None:
    """Rows a, a, b: one a is taken for b, and the answer to b is no class."""
    rows = [text("a", "a"), text("b", "a"), text("nothing", "b")]
    made = Evaluation.of([MacroF1, MacroRecall], rows)
    assert made.further == {"macro_f1": {"classes": ["a", "b"], "confusion": [[1, 1, 0], [0, 0, 1]]}}
    made.write(tmp_path / "evaluation")
    assert Evaluation.read(tmp_path / "evaluation").further == made.further
