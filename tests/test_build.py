"""Two passes over the files: rows kept or read again give the same tables, and a build that is stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft import plugins
from lightning_ft.cache import cache_root
from lightning_ft.config import TrainingConfig
from lightning_ft.data import badrows, build
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.render import Template
from lightning_ft.errors import DataError
from lightning_ft.registry import Registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Text

if TYPE_CHECKING:
    from collections.abc import Iterable

ROWS = [{"text": f"{'word ' * (i % 7)}row {i}", "group": i // 3} for i in range(230)]
BAD = ['{"text": 3}', '{"text": "half']


@pytest.fixture(autouse=True)
def _own_folder_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "CHUNK", 10)
    monkeypatch.setattr(build, "BLOCK", 20)
    monkeypatch.setattr(build, "PIECE", 30)


def write(name: str, rows: Iterable[Any]) -> str:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return name


def prepare(*data: str, said: list[str] | None = None, **options: Any) -> Prepared:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 64)
    config = TrainingConfig(**{"model": "m", "data": list(data), **options})
    say = ([] if said is None else said).append
    return Pipeline(config, Registry(*plugins.load()), encoder, None, (Conversation, Text), say).prepare()


def content(prepared: Prepared) -> dict[str, list[tuple[Any, ...]]]:
    return {
        split: [(list(r.input_ids), list(r.labels), r.row) for r in (table[i] for i in range(len(table)))]
        for split, table in prepared.tables.items()
    }


def test_rows_that_are_read_again_give_the_same_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = write("a.jsonl", [*ROWS[:120], *BAD]), write("b.jsonl", ROWS[120:])
    kept = prepare(*names, on_error="skip")
    assert len(list(kept.folder.glob("train-*.arrow"))) == 8, "230 rows in shards of 30"
    quarantine = (kept.folder / "quarantine.jsonl").read_text()
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(build, "KEPT_BYTES", 0)
    again = prepare(*names, on_error="skip")
    assert content(again) == content(kept)
    assert again.ledger == kept.ledger
    assert (again.folder / "quarantine.jsonl").read_text() == quarantine
    assert not list((tmp_path / "other" / "encoded").glob("*.unfinished"))


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
@pytest.mark.parametrize("stop", [0, 1, 5, 17, 22])
def test_a_build_that_is_stopped_goes_on_at_its_last_shard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stop: int, kept_bytes: int
) -> None:
    """Stopped in block `stop`, with a row in each block that the template refuses, so that the account matters."""
    monkeypatch.setattr(build, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(badrows, "MAX_SKIPPED", 0.1)
    name = write("a.jsonl", ROWS)
    tokenise, labelled, blocks = Encoder._tokenise, Encoder._labelled, [0]

    def stopped(self: Encoder, drafts: Any) -> Any:
        blocks[0] += 1
        if blocks[0] == stop + 1:
            raise KeyboardInterrupt
        return tokenise(self, drafts)

    def some_refused(self: Encoder, draft: Any, encoding: Any, row: str) -> Any:
        return "refused" if row.endswith(("17", "99")) else labelled(self, draft, encoding, row)

    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "_tokenise", stopped)
        patched.setattr(Encoder, "_labelled", some_refused)
        with pytest.raises(KeyboardInterrupt):
            prepare(name, on_error="skip")
        blocks[0] = 99
        said: list[str] = []
        found = prepare(name, said=said, on_error="skip")
        begun_again = blocks[0] - 99
        monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "other"))
        whole = prepare(name, on_error="skip")
    finished = stop // 3 * 3
    assert begun_again == 23 - finished
    assert any("going on" in line for line in said) == (finished > 0)
    assert content(found) == content(whole)
    assert found.ledger == whole.ledger
    assert found.ledger.total.failed == 5
    lines = [json.loads(line)["line"] for line in (found.folder / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [17, 99, 117, 199, 217]
    assert (found.folder / "quarantine.jsonl").read_text() == (whole.folder / "quarantine.jsonl").read_text()


def test_a_shard_that_is_not_whole_begins_the_build_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    name = write("a.jsonl", ROWS)
    original, blocks = Encoder._tokenise, [0]

    def counted(self: Encoder, drafts: Any) -> Any:
        blocks[0] += 1
        if blocks[0] == 8:
            raise KeyboardInterrupt
        return original(self, drafts)

    monkeypatch.setattr(Encoder, "_tokenise", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(name)
    (work,) = (cache_root() / "encoded").glob("*.unfinished")
    shard = work / "train-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    blocks[0] = 99
    assert prepare(name).ledger.total.used == 230
    assert blocks[0] == 99 + 23


def test_what_a_killed_process_left_half_written_is_removed() -> None:
    """Of the same rows: what is being written for others is left alone."""
    name = write("a.jsonl", ROWS)
    entry = prepare(name).folder
    left, others = (entry.with_name(f".tmp-{key}-99999") for key in (entry.name, "0" * len(entry.name)))
    for folder in (left, others):
        folder.mkdir()
        (folder / "train.arrow").write_bytes(b"half")
    prepare(name)
    assert (left.exists(), others.exists()) == (False, True)


def test_a_file_that_changes_while_it_is_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "KEPT_BYTES", 0)
    name = write("a.jsonl", ROWS)
    original = Encoder._tokenise

    def grows(self: Encoder, drafts: Any) -> Any:
        with Path(name).open("a") as file:
            file.write('{"text": "later"}\n')
        return original(self, drafts)

    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "_tokenise", grows)
        with pytest.raises(DataError, match=r"^a\.jsonl: expected the file to stay as it is while it is read, got"):
            prepare(name)
    assert not list((cache_root() / "encoded").glob("*.unfinished")), "rows of two files are mixed in it"
    assert prepare(name).ledger.total.used > 230


def test_tasks_are_held_out() -> None:
    rows = [{"text": f"{task} {i}", "kind": task} for i in range(20) for task in ("sum", "name", "list")]
    name = write("a.jsonl", rows)
    found = prepare(name, columns={"task": "kind"}, holdout_tasks="sum,list", split=[0.5, 0.2, 0.3])
    tests = [found.tables["test"].values(i)["task"] for i in range(len(found.tables["test"]))]
    assert sorted(tests) == ["list"] * 20 + ["sum"] * 20
    assert found.ledger.total.train + found.ledger.total.validation == 20
    assert found.ledger.total.validation
    with pytest.raises(DataError, match=r"expected rows of the task 'sums', got none\. Did you mean 'sum'\?"):
        prepare(name, columns={"task": "kind"}, holdout_tasks=["sums"])
    with pytest.raises(DataError, match=r"expected a column 'task' .* type --columns\.task COLUMN"):
        prepare(name, holdout_tasks=["sum"])


def test_memory_does_not_grow_with_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a few chunks of rows are alive at a time once rows are read again."""
    import gc

    from lightning_ft.types import Row

    monkeypatch.setattr(build, "KEPT_BYTES", 0)
    most = [0]
    original = Encoder._tokenise

    def counted(self: Encoder, drafts: Any) -> Any:
        gc.collect()
        most[0] = max(most[0], sum(type(item) is Row for item in gc.get_objects()))
        return original(self, drafts)

    monkeypatch.setattr(Encoder, "_tokenise", counted)
    prepare(write("a.jsonl", ROWS))
    assert 10 <= most[0] <= 45


def test_rows_are_split_by_what_they_ask_whatever_else_they_hold() -> None:
    """A word that all rows share holds none of them together, and an answer in a column of any name tears no question apart."""

    def turns(i: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Question {i // 2}?"}, {"role": "assistant", "content": f"Answer {i}."}]

    rows = [{"messages": turns(i), "lang": "en", "thoughts": f"So {i} it is."} for i in range(60)]
    found = prepare(write("talks.jsonl", rows))
    split = {row.rpartition(":")[2]: name for name, table in content(found).items() for _, _, row in table}
    assert len(split) == 60
    assert all(split[f"{i + 1}"] == split[f"{i + 2}"] for i in range(0, 60, 2))
    assert {name: len(table) for name, table in found.tables.items()} == {"train": 48, "validation": 6, "test": 6}
