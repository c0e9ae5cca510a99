"""Rows that stand for several, and columns under other names: nothing is lost, and nothing crosses splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lightning_ft import plugins
from lightning_ft.builtin import RawText
from lightning_ft.config import TrainingConfig
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.rename import Renaming, renamed
from lightning_ft.data.render import Template
from lightning_ft.data.split import SPLITS
from lightning_ft.errors import DataError, UsageError
from lightning_ft.registry import Registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Row, Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Verses(RawText):
    name: ClassVar[str] = "verses"

    def unfold(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Each verse of a poem as a row of its own."""
        verses = row["verses"]
        if not verses:
            raise ValueError("expected 'verses' to hold at least one, got none")
        return [{"text": verse, "poem": row["poem"]} for verse in verses]


@pytest.fixture(autouse=True)
def _own_folder_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def prepare(rows: Sequence[Any], task: Any = None, said: list[str] | None = None, **options: Any) -> Prepared:
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 200)
    config = TrainingConfig(**{"model": "m", "data": ["a.jsonl"], **options})
    say = (said if said is not None else []).append
    return Pipeline(config, Registry(*plugins.load()), encoder, task, (Conversation, Text), say).prepare()


def poems(number: int) -> list[dict[str, Any]]:
    return [{"poem": i, "verses": [f"verse {v} of poem {i}" for v in range(1 + i % 4)]} for i in range(number)]


def test_every_part_is_a_row_with_a_name_and_the_ledger_counts_it() -> None:
    said: list[str] = []
    prepared = prepare(poems(40), Verses(), said)
    total = prepared.ledger.total
    assert (total.read, total.unfolded, total.used) == (40, 60, 100)
    prepared.ledger.closes()
    assert "40 rows read (they stand for 100): " in said[-1]
    tables = prepared.tables.values()
    names = sorted(table[i].row for table in tables for i in range(len(table)))
    expected = [f"a.jsonl:{i + 1}" + (f"#{part}" if i % 4 else "") for i in range(40) for part in range(1, 2 + i % 4)]
    assert names == sorted(expected)


def test_the_parts_of_a_row_are_in_one_split() -> None:
    tables = prepare(poems(40), Verses()).tables
    lines = {split: {tables[split][i].row.split("#")[0] for i in range(len(tables[split]))} for split in SPLITS}
    assert all(lines.values())
    assert sum(map(len, lines.values())) == 40


def test_the_examples_of_the_test_are_those_parts_again() -> None:
    prepared = prepare(poems(40), Verses())
    table = prepared.tables["test"]
    for i, example in enumerate(prepared.examples("test", range(len(table)))):
        assert isinstance(example, Text)
        line, _, part = table[i].row.removeprefix("a.jsonl:").partition("#")
        assert example.text == f"verse {int(part or 1) - 1} of poem {int(line) - 1}"


def test_a_row_that_stands_for_nothing_has_failed() -> None:
    rows = poems(200)
    rows[3]["verses"] = []
    with pytest.raises(DataError, match=r"a.jsonl:4: expected 'verses' to hold at least one, got none"):
        prepare(rows, Verses())
    total = prepare(rows, Verses(), on_error="skip").ledger.total
    assert (total.failed, total.read + total.unfolded) == (1, total.used + 1)


def test_columns_have_the_names_that_the_task_reads() -> None:
    rows = [{"Body": f"text {i}", "text": "not this", "n": i} for i in range(20)]
    prepared = prepare(rows, columns={"text": "Body"})
    assert prepared.tables["test"].values(0)["text"].startswith("text ")
    assert prepared.ledger.total.used == 20
    other = prepare(rows)
    assert other.identity != prepared.identity
    assert other.folder != prepared.folder


def test_a_column_that_no_row_has_is_misspelt() -> None:
    with pytest.raises(DataError) as caught:
        prepare([{"Body": "x"}], columns={"text": "Bdoy"})
    assert str(caught.value) == (
        "a.jsonl: expected the column 'Bdoy' of --columns.text, got the columns Body. Did you mean 'Body'?"
    )


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        ({"q": 1, "a": 2}, {"question": "q"}, {"a": 2, "question": 1}),
        ({"q": 1, "a": 2}, {"q": "a", "a": "q"}, {"q": 2, "a": 1}),
        ({"q": 1, "prompt": 2}, {"prompt": "q"}, {"prompt": 1}),
        ({"a": 1}, {"question": "q"}, {"a": 1}),
        ({"text": None, "summary": 3}, {"question": "text|summary"}, {"text": None, "question": 3}),
        ({"text": 4, "summary": 3}, {"question": "text|summary"}, {"summary": 3, "question": 4}),
        ({"q": 1}, {"question": "q", "prompt": "q"}, {"question": 1, "prompt": 1}),
    ],
    ids=str,
)
def test_a_row_is_renamed(values: dict[str, Any], columns: dict[str, str], expected: dict[str, Any]) -> None:
    row = Row(values, "f", 1)
    before = dict(values)
    assert renamed(row, columns).values == expected
    assert row.values == before
    assert renamed(row, {}) is row


def test_a_column_may_be_missing_in_some_rows() -> None:
    renaming = Renaming({"question": "q", "answer": "none|x"})
    rows = [renaming(Row({"q": 1}, "f", 1)), renaming(Row({"x": 1}, "f", 2))]
    assert [row.values for row in rows] == [{"question": 1}, {"answer": 1}]
    renaming.check("f")


def test_a_misspelt_column_is_one_although_its_new_name_is_there() -> None:
    """Otherwise the file's own column of that name would be trained without a word."""
    renaming = Renaming({"prompt": "qestion"})
    renaming(Row({"question": 1, "prompt": 2}, "f", 1))
    with pytest.raises(
        DataError, match=r"^f: expected the column 'qestion' of --columns\.prompt, got the columns prompt, question\."
    ):
        renaming.check("f")


@pytest.mark.parametrize("columns", [{"a": ""}, {"": "a"}, {"a": 3}, {3: "a"}, {"a": ["b"]}], ids=str)
def test_a_wrong_mapping_is_refused(columns: Any) -> None:
    with pytest.raises(UsageError, match="Expected --columns to be"):
        TrainingConfig(model="m", data=["a"], columns=columns)
