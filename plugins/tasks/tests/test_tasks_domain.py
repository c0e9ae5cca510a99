"""Texts of a field: which rows are what, which task takes a file, and the share of words that a tokenizer knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.coverage import VocabularyCoverage
from lightning_ft_tasks.domain import Domain
from lightning_ft_tasks.instruct import Instruct

from lightning_ft.builtin import RawText
from lightning_ft.data.detect import detect_task
from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.decoding import Sampling
from lightning_ft.evaluation import Evaluation
from lightning_ft.registry import registry
from lightning_ft.scoring import score_examples
from lightning_ft.testing import check_metric, check_task
from lightning_ft.testing.models import tiny_llama, tiny_tokenizer
from lightning_ft.types import Conversation, Message, Row, ScoredRow, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import Example


def test_keeps_the_contract() -> None:
    check_task(Domain)
    check_task(Domain(text_column="body"), [{"document": "not this", "body": "The appeal is dismissed."}])


@pytest.mark.parametrize("column", ["text", "content", "document", "body"])
def test_a_raw_text_is_what_the_core_makes_of_it(column: str) -> None:
    row = {column: "The appeal\n is dismissed. ", "id": 4}
    assert Domain().format(row) == RawText().format({"text": row[column], "id": 4})


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "answer": "A", "source": "book"},
        {"instruction": "Q", "input": "C", "output": "A"},
        {"text": "Q", "answer": "A"},
        {"prompt": "Q", "response": "A", "text": "Q A"},
    ],
)
def test_a_question_is_what_instruct_makes_of_it(row: dict[str, Any]) -> None:
    assert Domain().format(row) == Instruct().format(row)


def test_columns_by_name() -> None:
    row = {"prompt": "not read", "Urteil": "Abgewiesen.", "Frage": "Wie?", "Antwort": "So."}
    assert Domain(question_column="Frage", answer_column="Antwort").format(row) == Conversation(
        (Message("user", "Wie?", extra={"instruction": "Wie?", "input": ""}), Message("assistant", "So.")),
        meta={"prompt": "not read", "Urteil": "Abgewiesen."},
    )
    raw = {"prompt": "Abgewiesen.", "id": 1}
    assert Domain(text_column="prompt").format(raw) == Text("Abgewiesen.", {"id": 1})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"title": "Judgment"}, r"expected a column 'text' \(or content, document, body\), or one with a question"),
        ({"text": "Q", "answer": " "}, "expected 'answer' to hold text"),
        ({"document": "Q", "answer": "A"}, "expected a column 'instruction'"),
        ({"document": 4}, "expected 'document' to be text, got a number"),
        ({"question": "Q", "text": "T"}, "expected a column 'output'"),
    ],
)
def test_rows_that_are_neither_are_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Domain().format(row)


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        (["text"], "text"),
        (["text", "source"], "text"),
        (["text", "document"], "text"),
        (["text", "label"], "classify"),
        (["question", "answer"], "instruct"),
        (["code", "content"], "code"),
        (["content"], "domain"),
        (["document", "title", "url"], "domain"),
        (["body", "document"], "domain"),
    ],
)
def test_files_of_other_tasks_stay_theirs(columns: Sequence[str], task: str) -> None:
    rows = [Row(dict.fromkeys(columns, "Once upon a time."), "rows.jsonl", n) for n in range(1, 4)]
    assert detect_task(rows, registry().tasks).name == task


@pytest.mark.parametrize("columns", [["document", "summary"], ["content", "role"], ["body", "label"], ["title"]])
def test_a_text_beside_what_may_be_an_answer_is_not_guessed(columns: Sequence[str]) -> None:
    assert not Domain.matches(frozenset(columns))


def counted(words: int, split: int) -> ScoredRow:
    return ScoredRow("f:1", Text("x"), tokens=1, words=words, split_words=split)


def test_coverage_keeps_the_contract() -> None:
    check_metric(VocabularyCoverage)
    check_metric(VocabularyCoverage, [counted(n, 0) for n in range(1, 7)], [counted(n, n) for n in range(1, 7)])


def test_coverage_is_a_share_of_all_words_not_a_mean_over_rows() -> None:
    """(4 - 1 + 1 - 0) / (4 + 1) = 0.8; a row without a word changes nothing."""
    metric = VocabularyCoverage()
    metric.update([counted(4, 1), counted(1, 0), counted(0, 0)])
    assert float(metric.compute()) == pytest.approx(0.8)


def test_coverage_of_texts_and_of_answers_alone() -> None:
    """By letters: `the` and `is` of `the heart is` have at most 3, and of the second row only the answer counts."""
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    template = Template.resolve("chat", tokenizer)
    asked = Conversation((Message("user", "is it so"), Message("assistant", "myocarditis")))
    examples: list[Example] = [Text(" the heart is"), asked]
    scored = score_examples(
        model, Encoder(tokenizer, template, 256), template, tokenizer, examples, ["f:1", "f:2"],
        metrics=Domain.metrics, sampling=Sampling(max_new_tokens=2),
    )  # fmt: skip
    assert [(row.words, row.split_words) for row in scored] == [(3, 1), (1, 1)]
    assert [row.prediction is None for row in scored] == [True, False], "raw text is not answered"
    found = Evaluation.of(Domain.metrics, scored)
    assert found.metrics["vocabulary_coverage"] == pytest.approx(2 / 4)
    assert found.metrics.keys() == {*Domain.metrics}
    assert found.counts == {"bits_per_byte": 2, "vocabulary_coverage": 2, "rougeL": 1}
    assert Evaluation.of(Domain.metrics, scored[:1]).metrics.keys() == {"bits_per_byte", "vocabulary_coverage"}
