"""Rows that the chat template refuses stop the run with their place, or go into quarantine; so do examples of a wrong kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft import plugins
from lightning_ft.builtin import RawText
from lightning_ft.cache import cache_root
from lightning_ft.config import TrainingConfig
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.render import Template
from lightning_ft.errors import DataError, UsageError
from lightning_ft.registry import Registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Example, Message, Preference, Text, Unpaired

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lightning_ft.task import Task

STRICT = """{% for m in messages %}{{ m.content if m.content != 'x' else raise_exception('no x') }}{% endfor %}"""


@dataclass(frozen=True)
class Sorted(RawText):
    """A task whose examples are of a kind that only a plugin's objective could train on."""

    def format(self, row: Any) -> Example:
        return Unpaired((Message("user", row["text"]),), (Message("assistant", "a"),), desirable=True)


def pipeline(
    data: Path, rows: Sequence[Any], *, template: str = "auto", on_error: str = "fail",
    task: Task | None = None, kinds: tuple[type[Example], ...] = (Conversation, Text),
) -> Pipeline:  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve(template, tokenizer), 200)
    config = TrainingConfig.from_dict({"model": "m", "data": [str(data)], "on_error": on_error})
    return Pipeline(config, Registry(*plugins.load()), encoder, task, kinds, lambda line: None)


def prepare(tmp_path: Path, on_error: str) -> Prepared:
    template = tmp_path / "strict.jinja"
    template.write_text(STRICT, encoding="utf-8")
    turns = [[{"role": "user", "content": "x" if i == 7 else "q"}, {"role": "assistant", "content": "a"}] for i in range(200)]
    rows = [{"messages": messages} for messages in turns]
    return pipeline(tmp_path / "a.jsonl", rows, template=str(template), on_error=on_error).prepare()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))


def test_it_stops_the_run_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.jsonl:8: .*no x"):
        prepare(tmp_path, "fail")
    assert not list((cache_root() / "encoded").glob("*/facts.json")), "nothing half done is left"


def test_it_goes_into_quarantine_and_is_accounted_for(tmp_path: Path) -> None:
    found = prepare(tmp_path, "skip")
    total = found.ledger.total
    assert (total.read, total.used, total.failed) == (200, 199, 1)
    kept = json.loads((found.folder / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert kept["line"] == 8
    assert "no x" in kept["reason"]


@pytest.mark.parametrize(
    ("task", "kinds", "message"),
    [
        (RawText(), (Preference,),
         "raw texts of the rows, but the objective trains on pairs of answers; type --objective sft, or give another --task."),
        (Sorted(), (Conversation, Text),
         "judged answers of the rows, but the objective trains on conversations or raw texts; no objective of "
         "the installed plugins trains on judged answers, so give another --task."),
    ],
)  # fmt: skip
def test_examples_that_the_objective_cannot_train_on(
    tmp_path: Path, task: Task, kinds: tuple[type[Example], ...], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(9)], task=task, kinds=kinds).prepare()
    assert str(caught.value) == f"Task text makes {message}"


def test_bad_rows_are_listed_in_the_order_of_files_and_lines() -> None:
    """What the task refuses is found after what could not be read further down."""
    bad = BadRows("fail")
    for source, line in (("b.jsonl", 9), ("b.jsonl", 3), ("a.jsonl", 1), ("b.jsonl", 5)):
        bad.refuse(source, line, "expected text, got none")
    with pytest.raises(DataError) as caught:
        bad.finish(20)
    places = [said.strip().partition(": ")[0] for said in str(caught.value).splitlines()[1:]]
    assert places == ["b.jsonl:3", "b.jsonl:5", "b.jsonl:9", "a.jsonl:1"]
