"""Rows of two texts on their way from the file to the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lightning_ft.data.collate import pack, pad
from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.data.schedule import Schedule
from lightning_ft.data.table import EncodedTable, TableWriter
from lightning_ft.data.targets import supervised
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import IGNORE_INDEX, Conversation, Encoded, Message, Preference

if TYPE_CHECKING:
    from pathlib import Path


def preference(chosen: str, rejected: str, *before: Message) -> Preference:
    better, worse = ((Message("assistant", text),) for text in (chosen, rejected))
    return Preference((*before, Message("user", "Which?")), better, worse)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def encoder_of(tokenizer: Any, max_length: int = 512) -> Encoder:
    return Encoder(tokenizer, Template.resolve("auto", tokenizer), max_length)


def test_a_pair_is_its_two_conversations_end_to_end(tokenizer: Any) -> None:
    earlier = (Message("user", "Hello?"), Message("assistant", "Hi, I must not train."))
    example = preference("The better one.", "No.", *earlier)
    (row,) = encoder_of(tokenizer).encode([example], ["f:1"])
    alone = []
    for answer in (example.chosen, example.rejected):
        muted = (Message("user", "Hello?"), Message("assistant", "Hi, I must not train.", weight=0.0), example.prompt[-1])
        alone += encoder_of(tokenizer).encode([Conversation((*muted, *answer))], ["f:1"])
    assert [list(text.input_ids) for text in row.texts()] == [text.input_ids for text in alone]
    assert [list(text.labels) for text in row.texts()] == [text.labels for text in alone]
    assert row.parts == tuple(len(text.input_ids) for text in alone)
    assert row.supervised == sum(text.supervised for text in alone)
    assert row.roles["assistant"] == tuple(sum(text.roles["assistant"][i] for text in alone) for i in (0, 1))
    said = tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])
    assert "better" in said
    assert "must not train" not in said


def test_each_text_is_cut_and_without_one_of_them_there_is_no_pair(tokenizer: Any) -> None:
    short, long = preference("Yes.", "No, " + "never " * 40), preference("x" * 20, "y")
    whole, _ = encoder_of(tokenizer).encode([short, long], ["f:1", "f:2"])
    most = whole.parts[0] + 3
    cut, _ = encoder_of(tokenizer, most).encode([short, long], ["f:1", "f:2"])
    assert cut.parts == (whole.parts[0], most)
    assert cut.truncated == whole.parts[1] - most
    assert cut.supervised == whole.supervised - cut.supervised_lost
    assert (cut.whole, whole.whole) == (whole.parts[1], whole.parts[1]), "what `--max_length` would have to be"
    prompt = list(whole.labels).index(next(label for label in whole.labels if label != IGNORE_INDEX))
    lost, _ = encoder_of(tokenizer, prompt).encode([short, long], ["f:1", "f:2"])
    assert lost.supervised == 0


def test_a_pair_that_cannot_be_rendered_is_told(tokenizer: Any) -> None:
    wrong = Preference((Message("user", "Which?"),), (Message("assistant", "a"),), (Message("tool", "b"),))
    encoder = Encoder(tokenizer, Template.resolve("alpaca", tokenizer), 512)
    found = encoder.try_encode([preference("a", "b"), wrong, preference("c", "d")], ["f:1", "f:2", "f:3"])
    assert [type(one) for one in found] == [Encoded, str, Encoded]


@pytest.fixture
def rows(tokenizer: Any) -> list[Encoded]:
    examples = [preference("word " * n, "w " * (9 - n)) for n in range(1, 8)]
    return encoder_of(tokenizer).encode(examples, [f"f:{n}" for n in range(1, 8)])


@pytest.fixture
def table(rows: list[Encoded], tmp_path: Path) -> EncodedTable:
    writer = TableWriter(tmp_path / "t.arrow")
    writer.write(rows, [None] * len(rows))
    writer.close()
    return EncodedTable(tmp_path / "t.arrow")


def test_table_keeps_the_parts(table: EncodedTable, rows: list[Encoded], tmp_path: Path) -> None:
    assert table.texts == 2
    for i, row in enumerate(rows):
        assert table[i].parts == row.parts
        assert [list(text.labels) for text in table[i].texts()] == [list(text.labels) for text in row.texts()]
    assert table.lengths.tolist() == [sum(row.parts) for row in rows]
    assert table.padded.tolist() == [2 * max(row.parts) for row in rows]
    assert table.supervised.tolist() == [row.supervised for row in rows]
    writer = TableWriter(tmp_path / "single.arrow")
    writer.write([text for row in rows for text in row.texts()], [None] * 14)
    writer.close()
    single = EncodedTable(tmp_path / "single.arrow")
    assert single.texts == 1
    assert single.padded.tolist() == single.lengths.tolist()
    assert single.supervised.reshape(-1, 2).sum(1).tolist() == table.supervised.tolist()


def test_batches_have_every_text_as_a_row(rows: list[Encoded]) -> None:
    texts = [text for row in rows for text in row.texts()]
    for together, alone in ((pad(rows, 0), pad(texts, 0)), (pack(rows, 900), pack(texts, 900))):
        assert (together.together, alone.together) == (2, 1)
        assert together.rows == tuple(f"f:{n}" for n in range(1, 8) for _ in range(2))
        assert together.lengths == alone.lengths
        assert together.documents == alone.documents
        assert torch.equal(together.input_ids, alone.input_ids)
        assert torch.equal(supervised(together).index, supervised(alone).index)


def test_padded_micro_batches_hold_what_they_may(table: EncodedTable) -> None:
    """A budget counts what is computed: both texts of each pair, each padded to the longest of all."""
    budget = 2 * int(table.padded.max())
    plan = Schedule(lengths=table.padded, supervised=table.supervised, batch_tokens=budget)
    seen: list[int] = []
    for step in plan:
        for micro in step.ranks[0]:
            assert pad([table[i] for i in micro], 0).input_ids.numel() <= budget
            seen += micro
    assert sorted(seen) == list(range(len(table)))
    assert np.all(table.padded >= table.lengths)
