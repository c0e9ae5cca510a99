from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from lightning_ft_tasks.metrics import (
    AnswerLength,
    ExactMatch,
    Rouge1,
    Rouge2,
    RougeL,
    RougeLsum,
    TokenF1,
    WordOverlap,
)
from lightning_ft_tasks.words import WordTokenizer, one_sentence_a_line, words
from rouge_score.rouge_scorer import RougeScorer

from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, ScoredRow

if TYPE_CHECKING:
    from lightning_ft.metric import Metric

ALL: list[type[Metric]] = [ExactMatch, TokenF1, WordOverlap, AnswerLength, Rouge1, Rouge2, RougeL, RougeLsum]
ENGLISH = [
    ("The cat sat on the mat.", "A cat was sitting on the mat."),
    ("Running dogs run quickly!\nThey bark.", "The dog runs quick.\nIt barks; they barked."),
    ("", "something"),
    ("42", "42 apples_and 7 pears"),
]


def row(prediction: str | None, *references: str) -> ScoredRow:
    return ScoredRow("f:1", Conversation(()), prediction=prediction, references=references)


def value(metric: type[Metric], *rows: ScoredRow) -> float:
    made = metric()
    made.update(rows)
    return float(made.compute())


@pytest.mark.parametrize("metric", ALL)
def test_keeps_the_contract(metric: type[Metric]) -> None:
    check_metric(metric)


def test_exact_match_strips_ends_only() -> None:
    assert value(ExactMatch, row(" Paris\n", "Paris")) == 1
    assert value(ExactMatch, row("paris", "Paris")) == 0
    assert value(ExactMatch, row("Paris.", "Paris")) == 0
    assert value(ExactMatch, row("Paris", "Rome", "Paris"), row("", "Rome")) == 0.5


def test_token_f1_by_hand() -> None:
    """'the cat sat' -> cat sat; 'A cat sat down!' -> cat sat down: c = 2, p = 2/2, r = 2/3, F1 = 2*2/(2+3) = 0.8."""
    assert value(TokenF1, row("the cat sat", "A cat sat down!")) == pytest.approx(0.8)
    # repeated words count as often as both have them: c = 1, F1 = 2*1/(3+1)
    assert value(TokenF1, row("no no no", "no")) == pytest.approx(0.5)
    assert value(TokenF1, row("the", "an")) == 1
    assert value(TokenF1, row("", "cat")) == 0


def test_rouge_by_hand() -> None:
    """Prediction 'police kill the gunman', reference 'police killed the gunman' (Lin 2004, section 3): equal after stemming."""
    assert value(RougeL, row("police kill the gunman", "police killed the gunman")) == 1
    # LCS of 'the gunman kill police' with it: 'the gunman', 2 of 4 words
    assert value(RougeL, row("the gunman kill police", "police killed the gunman")) == pytest.approx(0.5)
    assert value(Rouge1, row("the gunman kill police", "police killed the gunman")) == 1
    # pairs: 'the gunman' alone is common, 1 of 3
    assert value(Rouge2, row("the gunman kill police", "police killed the gunman")) == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", [Rouge1, Rouge2, RougeL])
def test_on_english_it_is_rouge_score_with_stemming(metric: type[Metric]) -> None:
    theirs = RougeScorer([metric.name], use_stemmer=True)
    for prediction, reference in ENGLISH:
        expected = theirs.score(reference, prediction)[metric.name].fmeasure
        assert value(metric, row(prediction, reference)) == pytest.approx(expected, abs=1e-12)


def test_rougelsum_works_by_sentence() -> None:
    swapped = row("One two three. Four five six.", "Four five six. One two three.")
    assert value(RougeL, swapped) == pytest.approx(0.5)
    assert value(RougeLsum, swapped) == 1
    assert one_sentence_a_line("Is it? Yes! It is 3.5.") == "Is it?\nYes!\nIt is 3.5."


def test_the_best_reference_counts_and_rows_are_averaged() -> None:
    assert value(RougeL, row("green", "red", "green"), row("blue", "red")) == pytest.approx(0.5)


def test_other_scripts_count() -> None:
    assert value(Rouge1, row("\u6771\u4eac\u3067\u3059", "\u6771\u4eac")) == pytest.approx(2 * 2 / (4 + 2))
    assert WordTokenizer().tokenize("Caf\u00e9 running") == ["caf\u00e9", "run"]


def test_missing_answers_are_no_zeros() -> None:
    with pytest.raises(ValueError, match="f:1: expected a generated answer for metric exact_match, got none"):
        value(ExactMatch, row(None, "x"))
    with pytest.raises(ValueError, match="f:1: expected a reference for metric rougeL, got none"):
        value(RougeL, row("x"))


def test_table_resamples() -> None:
    """Drawing rows, adding statistics and finishing is the metric of the drawn rows: the bootstrap's ground."""
    rows = [row(a, b) for a, b in ENGLISH]
    metric = RougeL()
    metric.update(rows)
    drawn = [0, 0, 3, 1]
    resampled = metric.finish(metric.table()[torch.tensor(drawn)].sum(0))
    assert float(resampled) == pytest.approx(value(RougeL, *[rows[i] for i in drawn]))
