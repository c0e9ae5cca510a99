from __future__ import annotations

import json
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
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
    TextMetric,
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
TEXTS: dict[str, list[str]] = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="ascii"))
"""Three texts in each of eleven scripts."""


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
    assert value(TokenF1, row("", "The!"), row("a", "the"), row("", "")) == pytest.approx(2 / 3)
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


def test_rouge_of_summaries_on_english_is_rouge_scores_own_with_stemming() -> None:
    """Theirs takes one sentence a line, as published figures do; ours finds the sentences by itself."""
    theirs = RougeScorer(["rougeLsum"], use_stemmer=True)
    texts = (
        ("The gunman was killed. Police were running.", "Police killed the gunman. They ran away."),
        ("A cat sat down. It slept.", "The cats sat. They were sleeping. Nobody came."),
        ("One sentence alone", "One sentence, and another one."),
    )
    for prediction, reference in texts:
        lines = (text.replace(". ", ".\n") for text in (reference, prediction))
        expected = theirs.score(*lines)["rougeLsum"].fmeasure
        assert value(RougeLsum, row(prediction, reference)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [Rouge1, Rouge2, RougeL, RougeLsum])
def test_in_every_script_it_is_rouge_score_with_the_same_words(metric: type[Metric]) -> None:
    """To the last digit, the best of several references, and the mean over rows."""
    theirs = RougeScorer([metric.name], tokenizer=WordTokenizer())
    split = one_sentence_a_line if metric is RougeLsum else str
    rows, expected = [], []
    for prediction, *references in (*permutations(TEXTS["en"]), *TEXTS.values(), ("", "a", ""), *ENGLISH):
        scores = [theirs.score(split(one), split(prediction))[metric.name].fmeasure for one in references]
        assert value(metric, row(prediction, *references)) == max(scores)
        rows.append(row(prediction, *references))
        expected.append(max(scores))
    assert value(metric, *rows) == pytest.approx(sum(expected) / len(expected), rel=1e-14)
    assert sum(score > 0 for score in expected) > 10


def test_signatures_name_words_stemmer_and_packages() -> None:
    packages = f"nltk:{version('nltk')}|rouge-score:{version('rouge-score')}"
    for metric in (Rouge1, Rouge2, RougeL):
        assert metric().signature == f"tok:words|case:lower|stem:porter|refs:best|rows:mean|{packages}"
    assert "|stem:porter|split:lines.!?|refs:best|" in RougeLsum().signature
    assert WordOverlap().signature == AnswerLength().signature == "tok:words|case:lower"


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


def test_words_of_every_script() -> None:
    """Marks are part of a word, also where they are letters' vowels; punctuation, symbols and emoji are no words."""
    assert words("It's 3.5 snake_case!") == ["it", "s", "3", "5", "snake", "case"]
    assert words("\u0939\u093f\u0928\u094d\u0926\u0940 \u0939\u0948\u0964") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u0939\u0948",
    ]
    assert words("\u0639\u0642\u0644\u064b\u0627\u060c \u0648") == ["\u0639\u0642\u0644\u064b\u0627", "\u0648"]
    assert words("e\u0301t\u00e9") == ["e\u0301t\u00e9"]
    assert words("\u30ab\u30bf A\u65e5\u672c\ud55c.") == ["\u30ab", "\u30bf", "a", "\u65e5", "\u672c", "\ud55c"]
    assert words("\U0001f44d\U0001f3fd \u2764\ufe0f !? \u3002") == []
    counted = {language: len(words(texts[0])) for language, texts in TEXTS.items()}
    assert [counted[language] for language in ("en", "fr", "de", "ru", "ar", "hi", "emoji")] == [30, 34, 26, 11, 19, 15, 6]
    assert all(counted[language] == sum(map(str.isalpha, TEXTS[language][0])) for language in ("zh", "ja", "ko"))


def test_word_overlap_by_hand() -> None:
    """Cat and sat of the, a, cat, sat, down; repetition does not count."""
    assert value(WordOverlap, row("The cat sat", "a cat sat down")) == pytest.approx(2 / 5)
    assert value(WordOverlap, row("no, NO no", "no")) == 1
    assert value(WordOverlap, row("x y", "a", "x z")) == pytest.approx(1 / 3)
    assert value(WordOverlap, row("", "")) == value(WordOverlap, row("!", "")) == 1
    assert value(WordOverlap, row("", "!")) == 0
    assert value(WordOverlap, row("", "a")) == value(WordOverlap, row("a", "")) == 0


def test_answer_length_by_hand() -> None:
    assert value(AnswerLength, row("The cat, too.", "x"), row(""), row("\u6771\u4eac!")) == pytest.approx((3 + 0 + 2) / 3)
    assert AnswerLength.higher_is_better is None
    with pytest.raises(ValueError, match="f:1: expected a generated answer for metric answer_length, got none"):
        value(AnswerLength, row(None))


def test_missing_answers_are_no_zeros() -> None:
    with pytest.raises(ValueError, match="f:1: expected a generated answer for metric exact_match, got none"):
        value(ExactMatch, row(None, "x"))
    with pytest.raises(ValueError, match="f:1: expected a reference, got none"):
        value(RougeL, row("x"))


@pytest.mark.parametrize("metric", [m for m in ALL if issubclass(m, TextMetric)])
def test_a_row_without_references_is_refused_before_anything_is_generated(metric: type[Metric]) -> None:
    with pytest.raises(ValueError, match="f:1: expected a reference, got none"):
        metric().check(row(None))
    metric().check(row(None, "x"))
    AnswerLength().check(row(None))


def test_table_resamples() -> None:
    """Drawing rows, adding statistics and finishing is the metric of the drawn rows: the bootstrap's ground."""
    rows = [row(a, b) for a, b in ENGLISH]
    metric = RougeL()
    metric.update(rows)
    drawn = [0, 0, 3, 1]
    resampled = metric.finish(metric.table()[torch.tensor(drawn)].sum(0))
    assert float(resampled) == pytest.approx(value(RougeL, *[rows[i] for i in drawn]))
