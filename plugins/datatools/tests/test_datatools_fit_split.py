"""`fit` keeps nearly equal prompts in one split, and takes no task's wording for duplicates."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from lightning_ft import plugins
from lightning_ft.config import TrainingConfig
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.render import Template
from lightning_ft.registry import Registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation

if TYPE_CHECKING:
    import pytest

    from lightning_ft.testing.fixtures import Scratch

WORDS = (
    "river", "copper", "window", "garden", "music", "seven", "bottle", "winter", "paper", "silver", "engine", "forest",
    "candle", "market", "bridge", "letter",
)  # fmt: skip


def prepare(name: str, said: list[str], **options: Any) -> Prepared:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 512)
    config = TrainingConfig(model="m", data=[name], **options)
    return Pipeline(config, Registry(*plugins.load()), encoder, None, (Conversation,), said.append).prepare()


def parts(prepared: Prepared) -> dict[int, str]:
    """The split of each line."""
    return {int(table[i].row.rpartition(":")[2]): split for split, table in prepared.tables.items() for i in range(len(table))}


def asked(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=18)) + "?"


def test_near_duplicates_stay_together(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", "cache")
    draw = random.Random(0)
    prompts = [asked(draw) for _ in range(120)]
    rows = [{"question": text, "answer": "Yes."} for text in prompts]
    rows += [{"question": f"Please, {text.replace('?', '')} !", "answer": "No."} for text in prompts[:60]]
    said: list[str] = []
    found = prepare(scratch.write("rows.jsonl", rows), said, split=[0.6, 0.2, 0.2])
    where = parts(found)
    assert all(where[i + 1] == where[121 + i] for i in range(60))
    assert len({where[i + 1] for i in range(60)}) == 3
    assert "data: 60 pairs of nearly the same prompts, each in one split" in said
    monkeypatch.setenv("LIGHTNING_FT_DISABLE_PLUGINS", "datatools")
    without = prepare("rows.jsonl", said, split=[0.6, 0.2, 0.2])
    torn = parts(without)
    assert any(torn[i + 1] != torn[121 + i] for i in range(60)), "the plugin is what keeps them together"
    assert without.identity != found.identity


def test_a_fixed_wording_is_no_duplicate(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", "cache")
    wording = "Translate the following English word into French and say nothing else but the word that you were asked for:"
    rows = [{"question": f"{wording} {a}{b}", "answer": "oui"} for a in WORDS[:6] for b in WORDS[6:12]]
    said: list[str] = []
    found = prepare(scratch.write("rows.jsonl", rows), said)
    assert [len(found.tables[split]) for split in ("train", "validation", "test")] == [29, 4, 3], "as without the plugin"
    assert any("taken for a task's wording" in line for line in said)


def test_nothing_is_looked_for_where_rows_name_their_split(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", "cache")
    draw = random.Random(0)
    rows = [{"question": asked(draw), "answer": "a", "split": ("train", "test")[i % 2]} for i in range(20)]
    rows += [{**row, "question": row["question"] + "!", "split": "train"} for row in rows]
    said: list[str] = []
    where = parts(prepare(scratch.write("rows.jsonl", rows), said, split=[0.5, 0.0, 0.5]))
    assert [where[i + 1] for i in range(20)] == ["train", "test"] * 10
    assert not any("nearly" in line for line in said)
