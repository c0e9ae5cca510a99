from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lightning_ft_tasks.diversity import Distinct1, Distinct2, SelfBleu
from lightning_ft_tasks.words import words
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from lightning_ft.testing import check_metric
from lightning_ft.testing.checks import scored_rows
from lightning_ft.types import Conversation, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.metric import Metric

SCRIPTS: dict[str, list[str]] = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="ascii"))
TEXTS = [text for texts in SCRIPTS.values() for text in texts if words(text)]
ALL: list[type[Metric]] = [Distinct1, Distinct2, SelfBleu]


def row(prediction: str | None) -> ScoredRow:
    return ScoredRow("f:1", Conversation(()), prediction=prediction)


def made(metric: type[Metric], *predictions: str) -> Metric:
    rows = [row(prediction) for prediction in predictions]
    ready = metric()
    ready.prepare(rows)
    ready.update(rows)
    return ready


def value(metric: type[Metric], *predictions: str) -> float:
    return float(made(metric, *predictions).compute())


def answers(seed: int, size: int) -> list[str]:
    """Texts of few words, so that they have much in common, and some real ones."""
    draw = random.Random(seed)
    few = [" ".join(draw.choices("abcde", k=draw.randrange(1, 12))) for _ in range(size)]
    return few + draw.choices(TEXTS, k=size // 2) + [draw.choice(TEXTS)[:20] for _ in range(size // 4)]


def naive_self_bleu(predictions: Sequence[str]) -> list[float]:
    """Each answer against all others, as Zhu et al. compute it."""
    split = [words(prediction) for prediction in predictions]
    smooth = SmoothingFunction(epsilon=0.1).method1
    return [sentence_bleu(split[:i] + split[i + 1 :], said, smoothing_function=smooth) for i, said in enumerate(split)]


@pytest.mark.parametrize("metric", [Distinct1, Distinct2])
def test_distinct_keeps_the_contract(metric: type[Metric]) -> None:
    check_metric(metric)


def test_self_bleu_keeps_the_contract() -> None:
    """Answers that differ are the right ones here."""
    various = scored_rows(right=True)
    for one, text in zip(various, ("a b c d", "e f g h", "i j k l", "m n o p", "q r s t", "u v w x"), strict=True):
        one.prediction = text
    check_metric(SelfBleu, right=various, wrong=scored_rows(right=True))


def test_distinct_by_hand() -> None:
    """Words a b a and b c: 3 distinct of 5; pairs (a b) (b a) and (b c): 3 of 3. With a b again: 3 of 7, 3 of 4."""
    assert value(Distinct1, "a b a", "b c") == pytest.approx(3 / 5)
    assert value(Distinct2, "a b a", "b c") == 1
    assert value(Distinct1, "a b a", "b c", "A, b!") == pytest.approx(3 / 7)
    assert value(Distinct2, "a b a", "b c", "A, b!") == pytest.approx(3 / 4)
    assert made(Distinct1, "a b a", "b c").table().tolist() == [[1.5, 3], [1.5, 2]]
    assert value(Distinct1, "", "") == value(Distinct2, "a", "") == 0


@pytest.mark.parametrize("order", [1, 2])
def test_distinct_is_of_the_whole_set_in_any_order(order: int) -> None:
    metric = {1: Distinct1, 2: Distinct2}[order]
    for seed in range(5):
        said = answers(seed, 40)
        runs = [run for text in said for run in zip(*(words(text)[i:] for i in range(order)), strict=False)]
        assert value(metric, *said) == pytest.approx(len(set(runs)) / len(runs), rel=1e-12)
        assert value(metric, *reversed(said)) == pytest.approx(value(metric, *said), rel=1e-12)


def test_self_bleu_by_hand() -> None:
    """Of `a b c d e` the other has all but e: 4/5, 3/4, 2/3, 1/2, of which the product is 1/5; both have 5 words."""
    assert value(SelfBleu, "a b c d e", "a b c d x") == pytest.approx(0.2**0.25)
    # a b a b c: the others have two a in one text, and (a b) once; b once
    said = "a b a b c", "a a x y z", "a b q r s"
    # words: 2 a, 1 b of 5; pairs: 1 of 4; then 0.1 of 3 and 0.1 of 2
    assert made(SelfBleu, *said).table()[0, 0] == pytest.approx((3 / 5 * 1 / 4 * 0.1 / 3 * 0.1 / 2) ** 0.25)
    assert value(SelfBleu, "same words here again", "same words here again") == 1
    assert value(SelfBleu, "a b c d", "e f g h") == 0


def test_self_bleu_is_what_nltk_says_of_each_against_all_others() -> None:
    for seed in range(12):
        said = answers(seed, 12)
        assert made(SelfBleu, *said).table()[:, 0].tolist() == pytest.approx(naive_self_bleu(said), abs=1e-9)
        assert value(SelfBleu, *said) == pytest.approx(sum(naive_self_bleu(said)) / len(said), abs=1e-9)
    for said in (["a"], ["a", "a"], ["a b"] * 3, ["a a a a", "a"], ["a b c", "a b c d e", "a b c d"]):
        expected = naive_self_bleu(said) if len(said) > 1 else [0]
        assert made(SelfBleu, *said).table()[:, 0].tolist() == pytest.approx(expected, abs=1e-9)


def test_an_empty_answer_adds_no_variety() -> None:
    assert made(SelfBleu, "", "a b c d", "e f g h").table().tolist() == [[1, 1], [0, 1], [0, 1]]
    assert value(SelfBleu, "", "\U0001f44d") == 1
    assert made(SelfBleu, "alone").table().tolist() == [[0, 0]]


def test_self_bleu_is_linear_in_the_number_of_answers() -> None:
    """3000 answers of 40 words; each against all others would be 9 million comparisons."""
    draw = random.Random(1)
    said = [" ".join(str(draw.randrange(500)) for _ in range(40)) for _ in range(3000)]
    start = time.process_time()
    assert 0 < value(SelfBleu, *said) < 1
    assert time.process_time() - start < 20


@pytest.mark.parametrize("metric", ALL)
def test_rows_that_were_not_prepared_are_errors(metric: type[Metric]) -> None:
    with pytest.raises(ValueError, match=f"f:1: metric {metric.name} expected `prepare` to have seen this answer"):
        metric().statistics(row("some words"))
    with pytest.raises(ValueError, match=f"f:1: expected a generated answer for metric {metric.name}, got none"):
        metric().prepare([row(None)])


def test_signatures_say_how() -> None:
    assert Distinct2().signature == "tok:words|case:lower"
    assert SelfBleu().signature == "n:4|eff:no|smooth:epsilon[0.1]|tok:words|case:lower"
