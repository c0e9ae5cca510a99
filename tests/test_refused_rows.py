"""A row that the chat template refuses is an unreadable row: it stops the run with its place, or goes into quarantine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lightning_ft import plugins
from lightning_ft.config import TrainingConfig
from lightning_ft.data.cache import cache_root
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.render import Template
from lightning_ft.errors import DataError
from lightning_ft.registry import Registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation

if TYPE_CHECKING:
    from pathlib import Path

STRICT = """{% for m in messages %}{{ m.content if m.content != 'x' else raise_exception('no x') }}{% endfor %}"""


def prepare(tmp_path: Path, on_error: str) -> Prepared:
    template, data = tmp_path / "strict.jinja", tmp_path / "a.jsonl"
    template.write_text(STRICT, encoding="utf-8")
    turns = [[{"role": "user", "content": "x" if i == 7 else "q"}, {"role": "assistant", "content": "a"}] for i in range(200)]
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns), encoding="utf-8")
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve(str(template), tokenizer), 200)
    config = TrainingConfig.from_dict({"model": "m", "data": [str(data)], "on_error": on_error})
    return Pipeline(config, Registry(*plugins.load()), encoder, None, (Conversation,), lambda line: None).prepare()


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
