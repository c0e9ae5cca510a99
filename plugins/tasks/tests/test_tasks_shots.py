"""Few-shot: which rows are shown before a row, how, and that nothing of them is trained."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning_ft_tasks.instruct import Instruct

from lightning_ft.config import TrainingConfig
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.render import Template
from lightning_ft.errors import DataError, UsageError
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import IGNORE_INDEX, Conversation

ROWS = [{"question": f"What is {i} plus 1?", "answer": f"It is {i + 1}."} for i in range(60)]
SHOTS = [{"question": "Is it cold?", "answer": "No."}, {"instruction": "Shout.", "input": "hi", "output": "HI"}]


@pytest.fixture(autouse=True)
def _own_folder_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def prepare(task: Instruct, data: str = "a.jsonl", **options: Any) -> Prepared:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 2000)
    config = TrainingConfig(model="m", data=[data], **options)
    return Pipeline(config, registry(), encoder, task, (Conversation,), lambda line: None).prepare()


def test_as_turns() -> None:
    made = Instruct(shots=2, system="Be brief.").format({**ROWS[0], "shots": SHOTS, "id": 7})
    assert [(m.role, m.content, m.loss_weight) for m in made.messages] == [
        ("system", "Be brief.", 0.0),
        ("user", "Is it cold?", 0.0), ("assistant", "No.", 0.0),
        ("user", "Shout.\n\nhi", 0.0), ("assistant", "HI", 0.0),
        ("user", "What is 0 plus 1?", 0.0), ("assistant", "It is 1.", 1.0),
    ]  # fmt: skip
    assert made.meta == {"id": 7}


def test_as_text() -> None:
    made = Instruct(shots=2, shots_as="text").format({**ROWS[0], "shots": SHOTS})
    assert [m.role for m in made.messages] == ["user", "assistant"]
    assert made.messages[0].content == (
        "Question: Is it cold?\nAnswer: No.\n\nQuestion: Shout.\n\nhi\nAnswer: HI\n\nQuestion: What is 0 plus 1?\nAnswer:"
    )
    assert made.messages[1].content == "It is 1."


@pytest.mark.parametrize("way", ["turns", "text"])
def test_shots_are_training_rows_and_never_the_row_itself_nor_a_test_row(way: Any) -> None:
    found = prepare(Instruct(shots=3, shots_as=way))
    decode: Any = tiny_tokenizer().decode
    train = [found.tables["train"][i] for i in range(len(found.tables["train"]))]
    asked = {int(row.row.rpartition(":")[2]) - 1 for row in train}
    shown: Counter[int] = Counter()
    for split, table in found.tables.items():
        assert len(table) == {"train": 48, "validation": 6, "test": 6}[split]
        for i in range(len(table)):
            row = table[i]
            text = decode(row.input_ids)
            numbers = [int(word.split()[0]) for word in text.split("What is ")[1:]]
            own = int(row.row.rpartition(":")[2]) - 1
            assert numbers[-1] == own
            assert own not in numbers[:3]
            assert len(set(numbers[:3])) == 3
            assert set(numbers[:3]) <= asked, split
            shown.update(numbers[:3])
            trained = decode([token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORE_INDEX])
            assert trained.startswith(f"It is {own + 1}.")
            assert "plus" not in trained
    assert len(shown) > 40, "all over the training rows"
    tests = found.examples("test", range(6))
    assert all(len(example.messages) == (8 if way == "turns" else 2) for example in tests), "also where answers are generated"  # type: ignore[union-attr]  # conversations


def test_the_seed_decides_and_the_place_of_the_file_does_not() -> None:
    def tokens(prepared: Prepared) -> list[list[int]]:
        return [list(prepared.tables["train"][i].input_ids) for i in range(len(prepared.tables["train"]))]

    first = tokens(prepare(Instruct(shots=2), split=[1.0, 0.0]))
    Path("b.jsonl").write_bytes(Path("a.jsonl").read_bytes())
    assert tokens(prepare(Instruct(shots=2), "b.jsonl", split=[1.0, 0.0])) == first
    assert tokens(prepare(Instruct(shots=2), split=[1.0, 0.0], seed=1)) != first


def test_shots_from_a_file_of_their_own() -> None:
    Path("shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SHOTS))
    found = prepare(Instruct(shots=1, shots_from="shots.jsonl"), split=[0.5, 0.5])
    texts = [tiny_tokenizer().decode(found.tables["train"][i].input_ids) for i in range(30)]
    assert all(("Is it cold?" in text) != ("Shout." in text) for text in texts)
    Path("shots.jsonl").write_text(json.dumps(SHOTS[0]) + "\n" + json.dumps({"question": "Why?", "answer": "So."}) + "\n")
    again = prepare(Instruct(shots=1, shots_from="shots.jsonl"), split=[0.5, 0.5])
    assert again.identity != found.identity, "what is shown is part of the data"
    assert not any("Shout." in tiny_tokenizer().decode(again.tables["train"][i].input_ids) for i in range(30))


def test_shots_of_a_file_have_their_columns_renamed() -> None:
    lines = [json.dumps({"ask": row["question"], "say": row["answer"]}) for row in ROWS]
    Path("own.jsonl").write_text("\n".join(lines))
    columns = {"question": "ask", "answer": "say"}
    found = prepare(Instruct(shots=2, shots_from="own.jsonl"), "own.jsonl", columns=columns)
    table = found.tables["train"]
    texts = [tiny_tokenizer().decode(table[i].input_ids) for i in range(len(table))]
    assert {text.count("What is ") for text in texts} == {3}, "two shots and the row"


def test_the_same_question_is_not_shown_whatever_else_stands_in_its_row() -> None:
    """Nor where a column that no task reads tells the two rows apart."""
    rows = [{"question": f"Q{i // 2}?", "answer": f"A{i}.", "note": i} for i in range(6)]
    Path("notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepare(Instruct(shots=2), "notes.jsonl", split=[1.0, 0.0])
    decode: Any = tiny_tokenizer().decode
    texts = [decode(found.tables["train"][i].input_ids) for i in range(6)]
    assert all(len({part[0] for part in text.split("Q")[1:]}) == 3 for text in texts)


def test_too_few_rows_to_draw_from() -> None:
    Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    message = "Expected more than 4 rows with different prompts among the training rows for --task.shots 4, got 4; take fewer"
    with pytest.raises(DataError, match=message):
        prepare(Instruct(shots=4), "few.jsonl", split=[1.0, 0.0])


@pytest.mark.parametrize("options", [{"shots": -1}, {"shots": 1, "shots_as": "turn"}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Expected --task\.shots of at least 0 and --task\.shots_as turns or text"):
        Instruct(**options)


@pytest.mark.parametrize("value", [1, "3 shots of espresso", None, [{"question": "a", "answer": "b"}]])
def test_a_column_of_that_name_is_the_users_own(value: Any) -> None:
    made = Instruct().format({**ROWS[0], "shots": value})
    assert len(made.messages) == 2
    assert made.meta == {"shots": value}


@pytest.mark.parametrize("row", [{"question": "a", "answer": 5}, {"question": "a", "answer": ""}, {"messages": []}])
def test_a_file_of_shots_that_cannot_be_shown_is_told_with_its_line(row: Any) -> None:
    Path("shots.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (*SHOTS, row)))
    with pytest.raises(DataError, match=r"^shots\.jsonl:3: expected .* name another file with --task\.shots_from"):
        prepare(Instruct(shots=1, shots_from="shots.jsonl"))


def test_what_is_shown_has_the_form_of_what_trains() -> None:
    from lightning_ft_tasks.reasoning import Reasoning

    shot = {"question": "2 + 3?", "reasoning": "Two and three.", "answer": "5"}
    made = Reasoning(shots=1).format({**shot, "question": "1 + 1?", "answer": "2", "shots": [shot]})
    assert [turn.content for turn in made.messages] == [
        "2 + 3?", "Two and three.\n\nAnswer: 5", "1 + 1?", "Two and three.\n\nAnswer: 2",
    ]  # fmt: skip


def test_rows_that_stand_for_several_are_shown_as_one_of_them() -> None:
    from lightning_ft_tasks.self_instruct import SelfInstruct

    tasks = [
        {"name": f"t{i}", "instruction": f"Do {i}.", "instances": [{"input": "", "output": f"out {i} {k}"} for k in (1, 2)]}
        for i in range(12)
    ]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    found = prepare(SelfInstruct(shots=2), "tasks.jsonl", split=[1.0, 0.0])
    decode: Any = tiny_tokenizer().decode
    texts = [decode(found.tables["train"][i].input_ids) for i in range(len(found.tables["train"]))]
    assert len(texts) == 24
    assert all(text.count("Do ") == 3 for text in texts)
