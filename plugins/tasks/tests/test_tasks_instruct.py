from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.instruct import Instruct

from lightning_ft.testing import check_task

if TYPE_CHECKING:
    from pathlib import Path


def test_keeps_the_contract() -> None:
    check_task(Instruct)
    check_task(Instruct(system="Be brief."))


def texts(task: Instruct, row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in task.format(row).messages]


def test_instruction_with_input() -> None:
    example = Instruct().format({"instruction": "Add.", "input": "1 2", "output": "3", "source": "x", "split": "test"})
    user, assistant = example.messages
    assert user.content == "Add.\n\n1 2"
    assert user.extra == {"instruction": "Add.", "input": "1 2"}
    assert (assistant.role, assistant.content, assistant.loss_weight) == ("assistant", "3", 1.0)
    assert example.meta == {"source": "x", "split": "test"}


@pytest.mark.parametrize("context", ["", "  ", None])
def test_empty_input_leaves_the_instruction_alone(context: str | None) -> None:
    assert texts(Instruct(), {"instruction": "Add.", "input": context, "output": "3"})[0] == ("user", "Add.")


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Q", "context": "C", "response": "A"}, "Q\n\nC"),
        ({"instruction": "Q", "response": "A"}, "Q"),
        ({"prompt": "Q", "response": "A"}, "Q"),
        ({"prompt": "Q", "completion": "A"}, "Q"),
        ({"question": "Q", "context": "C", "answer": "A"}, "Q\n\nC"),
        ({"query": "Q", "answer": "A"}, "Q"),
        ({"input": "Q", "output": "A"}, "Q"),
    ],
)
def test_column_pairs(row: dict[str, str], question: str) -> None:
    assert Instruct.matches(frozenset(row))
    assert texts(Instruct(), row) == [("user", question), ("assistant", "A")]


@pytest.mark.parametrize("columns", [{"text"}, {"messages"}, {"text", "label"}, {"instruction"}, {"output"}])
def test_other_columns_are_not_its(columns: set[str]) -> None:
    assert not Instruct.matches(frozenset(columns))


def test_an_empty_column_does_not_hide_what_the_question_is_about() -> None:
    """As where files of two kinds were put into one table."""
    for empty in (None, "", " "):
        made = Instruct().format({"instruction": "Who won?", "input": empty, "context": "A beat B.", "response": "A."})
        assert made.messages[0].content == "Who won?\n\nA beat B."


def test_system_option_and_column() -> None:
    row = {"prompt": "Q", "response": "A"}
    assert texts(Instruct(system="S"), row)[0] == ("system", "S")
    assert texts(Instruct(system="S"), {**row, "system": "T"})[0] == ("system", "T")
    assert texts(Instruct(), {**row, "system": ""})[0] == ("user", "Q")


def test_named_columns() -> None:
    task = Instruct(question_column="problem", context_column="hint", answer_column="solution")
    example = task.format({"problem": "Q", "hint": "C", "solution": "A", "answer": "42"})
    assert [m.content for m in example.messages] == ["Q\n\nC", "A"]
    assert example.meta == {"answer": "42"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "Q", "label": 1},
            "expected a column 'output' (or response, completion, answer), got instruction, label",
        ),
        ({"output": "A"}, "expected a column 'instruction' (or prompt, question, query, input), got output"),
        ({"instruction": "Q", "output": 3}, "expected 'output' to be text, got a number"),
        ({"instruction": "Q", "output": None}, "expected 'output' to be text, got null"),
        ({"instruction": "Q", "output": ""}, "expected 'output' to hold text, got an empty one"),
        ({"instruction": " ", "output": "A"}, "expected 'instruction' to hold text, got white space"),
        ({"instruction": "Q", "input": ["x"], "output": "A"}, "expected 'input' to be text, got a list"),
    ],
)
def test_wrong_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        Instruct().format(row)
    assert str(caught.value) == message


def test_a_named_column_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="expected a column 'solution', got question, answer"):
        Instruct(answer_column="solution").format({"question": "Q", "answer": "A"})


@pytest.mark.parametrize(
    ("name", "count"),
    [("raschka_instruction/instruction-data.json", 1100), ("litgpt_fixtures/dolly.json", 12), ("gsm8k/train.jsonl", 7473),
     ("torchtune_assets/instruct_tiny.json", 2)],
)  # fmt: skip
def test_real_files(shared_data: Path, name: str, count: int) -> None:
    path = shared_data / name
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    assert Instruct.matches(frozenset(rows[0]))
    examples = [Instruct().format(row) for row in rows]
    assert len(examples) == count
    assert all(
        e.messages[-1].role == "assistant" and e.messages[-1].content in row.values()
        for e, row in zip(examples, rows, strict=True)
    )
