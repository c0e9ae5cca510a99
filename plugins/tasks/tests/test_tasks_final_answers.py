from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from lightning_ft_tasks.final_answers import AnswerMatch, FinalAnswer, compare_final, marked_answer
from lightning_ft_tasks.reasoning import Reasoning

from lightning_ft.errors import UsageError
from lightning_ft.testing import check_metric, check_task
from lightning_ft.types import Conversation, ScoredRow

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.metric import Metric

GSM8K = {"question": "How many?", "answer": "He has 6 * 7 = <<6*7=42>>42.\nThat is all.\n#### 42"}


def row(prediction: str | None, *references: str, **meta: str) -> ScoredRow:
    return ScoredRow("f:1", Conversation((), meta=meta), prediction=prediction, references=references)


def value(metric: type[Metric], *rows: ScoredRow) -> float:
    made = metric()
    made.update(rows)
    return float(made.compute())


@pytest.mark.parametrize("metric", [AnswerMatch, FinalAnswer])
def test_keeps_the_contract(metric: type[Metric]) -> None:
    check_metric(metric)


def test_answer_match_by_hand() -> None:
    assert value(AnswerMatch, row("It is Paris, of course.", "the paris")) == 1
    assert value(AnswerMatch, row("A party", "art")) == 0
    assert value(AnswerMatch, row("New York, York", "York New")) == 0
    assert value(AnswerMatch, row("In 1,000 years", "1000", "none")) == 1
    assert value(AnswerMatch, row("\u6771\u4eac\u3067\u3059", "\u6771\u4eac")) == 1
    assert value(AnswerMatch, row("", "x"), row("the", "a")) == 0.5
    with pytest.raises(ValueError, match="f:1: expected a reference, got none"):
        value(AnswerMatch, row("x"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 1\nbut no.\n**Answer:** 2\nMore", "** 2"),
        ("answer:\n\n 42 \n", "42"),
        ("5 + 5\n#### 10\nAnswer: 11", "11"),  # the prefix goes before ####
        ("#### 10\n\\boxed{9}", "10"),
        ("so \\boxed{1} and \\boxed{\\frac{1}{2}} then", "\\frac{1}{2}"),
        ("\\boxed{1", None),
        ("The answer is 3. No, my final answer is: 4 apples. So.", "4 apples."),
        ("Final answer: 7", "7"),
        ("<think>Answer: 1</think>\nIt is 2", None),
        ("<think>Answer: 1", None),
        ("the answers are", None),
        ("", None),
    ],
)
def test_where_the_final_answer_is(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        ("so #### 1,234.50", "x\n#### 1234.5", True),
        ("The answer is $18 per day.", "#### 18", True),
        ("The answer is 5 + 3 = 8.", "#### 8", True),
        ("6 times 7 is 42", "#### 42", True),  # the last number
        ("6 times 7 is 42, not 43", "#### 42", False),
        ("\\boxed{42\\%}", "42", True),
        ("Answer: 3/4", "\\boxed{\\frac{3}{4}}", True),
        ("Answer: 0.75", "Answer: 3 / 4", False),
        ("Answer: -0.0", "0", True),
        ("Answer: -07", "+7", False),
        ("Answer: .50", "0.5", True),
        ("Answer: **\u20ac1,000**", "1000.00", True),
        ("Answer: the Paris!", "\\boxed{\\text{paris}}", True),
        ("The answer is Paris. It is big.", "Answer: Paris", True),
        ("Answer: Rome", "Answer: Paris", False),
        ("Paris", "paris.", True),  # the whole text
        ("It is Paris", "Paris", False),
        ("<think>42</think> None", "42", False),
        ("<think>so 42", "42", False),
        ("", "Paris", False),
        ("Answer:", "the", False),
        ("Answer: 5 apples", "Answer: 5 apples", True),
        ("Answer: A", "Answer: A", True),  # an article to SQuAD
        ("Answer: (a)", "A", True),
        ("The answer is B. The others are wrong.", "Answer: B", True),
        ("The answer is C. S. Lewis.", "Answer: C. S. Lewis", True),
        ("the UK", "Answer: UK", True),
        ("Answer: 1,234 km", "Answer: 1234 km", True),
        ("Answer: 10 a.m.", "10 am", True),
        ("\\boxed{x^{2}}", "x^2", True),
        ("Answer: (0, 1]", "[0, 1)", False),
        ("Answer: (x, 2)", "x,2", True),
        ("It is (B).", "B", False),
        ("\\boxed{x-1}", "\\boxed{x+1}", False),
        ("\\boxed{x + 1}", "\\boxed{x+1}.", True),
        ("Answer: (3,2)", "Answer: (3,-2)", False),
    ],
)
def test_final_answers_are_equal_or_not(prediction: str, reference: str, equal: bool) -> None:
    assert compare_final(prediction, reference) == float(equal)
    assert value(FinalAnswer, row(prediction, reference)) == float(equal)


def test_a_row_may_have_its_own_prefix() -> None:
    assert value(FinalAnswer, row("So: 5\nAnswer: 6", "x\nSo: 5", answer_prefix="So: ")) == 1
    assert value(FinalAnswer, row("So: 5\nAnswer: 6", "x\nSo: 5")) == 0


def test_the_task_splits_gsm8ks_answers() -> None:
    check_task(Reasoning)
    example = Reasoning().format(GSM8K)
    assert [m.content for m in example.messages] == [
        "How many?", "He has 6 * 7 = <<6*7=42>>42.\nThat is all.\n\nAnswer: 42",
    ]  # fmt: skip
    assert example.meta == {}
    marked = Reasoning(answer_prefix="#### ").format(GSM8K | {"task": "sums"})
    assert marked.messages[-1].content.endswith("That is all.\n\n#### 42")
    assert marked.meta == {"task": "sums", "answer_prefix": "#### "}
    assert Reasoning(style="think", answer_prefix="x").format(GSM8K).messages[-1].content.endswith("\n</think>\n\n42")
    with pytest.raises(
        ValueError, match=r"expected a column 'reasoning' .* or '####' between .* in 'answer', got question, answer"
    ):
        Reasoning().format({"question": "Q", "answer": "42"})
    with pytest.raises(UsageError, match=r"--task\.shots of at least 0"):
        Reasoning(shots=-1)


def test_every_row_of_gsm8k_has_its_number(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, values in enumerate(rows):
        last = Reasoning().format(values).messages[-1].content
        wanted = values["answer"].rpartition("####")[2].strip()
        assert marked_answer(last) == wanted
        assert compare_final(f"It follows.\nThe answer is {wanted.replace(',', '')}.", values["answer"]) == 1
        assert compare_final(last, values["answer"]) == 1
        other = rows[number - 1]["answer"].rpartition("####")[2].strip()
        assert compare_final(f"#### {other}", last) == float(other.replace(",", "") == wanted.replace(",", ""))


@pytest.mark.parametrize(("said", "asked"), [("[0, 1]", "(0, 1)"), ("n+1", "(n+1)!"), ("(n+1)", "(n+1)!")])
def test_what_signs_mean_is_not_dropped(said: str, asked: str) -> None:
    """Intervals with their ends are others than without, and a factorial is no exclamation."""
    assert not compare_final(f"Answer: {said}", asked)
    assert compare_final(f"Answer: {asked}", asked)
