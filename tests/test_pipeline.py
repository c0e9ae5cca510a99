from __future__ import annotations

import importlib
import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft import plugins
from lightning_ft.builtin import Messages, RawText
from lightning_ft.cache import cache_root
from lightning_ft.config import TrainingConfig
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline, Prepared, copy_quarantine
from lightning_ft.data.render import Template
from lightning_ft.errors import CheckFailedError, DataError, UsageError
from lightning_ft.registry import Registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Example, Text

if TYPE_CHECKING:
    from collections.abc import Iterator

TASK = """
from dataclasses import dataclass
from lightning_ft.builtin import RawText
from lightning_ft.types import Text

@dataclass(frozen=True)
class Shout(RawText):
    mark: str = "!"
    def format(self, row):
        return Text(row["text"].upper() + self.mark)
"""


@pytest.fixture(autouse=True)
def _own_folder_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each call of the tokenizer from here on."""
    calls: list[int] = []
    original = Encoder._tokenise

    def counted(self: Encoder, drafts: Any) -> Any:
        calls.append(len(drafts))
        return original(self, drafts)

    monkeypatch.setattr(Encoder, "_tokenise", counted)
    return calls


@dataclass
class Start:
    """One start of a run: its options, and what it said."""

    said: list[str]
    prepared: Prepared

    @property
    def rows(self) -> dict[str, list[str]]:
        """`file:line` of the rows of each split."""
        return {split: [table[i].row for i in range(len(table))] for split, table in self.prepared.tables.items()}

    @property
    def tokens(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything that is in the tables."""
        return {
            split: [(list(r.input_ids), list(r.labels), r.row, r.weight) for r in (table[i] for i in range(len(table)))]
            for split, table in self.prepared.tables.items()
        }


def pipeline(
    *data: str, task: Any = None, kinds: tuple[type[Example], ...] = (Conversation, Text), template: str = "auto",
    max_length: int = 200, said: list[str] | None = None, **options: Any,
) -> Pipeline:  # fmt: skip
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve(template, tokenizer), max_length)
    config = TrainingConfig(**{"model": "m", "data": list(data), **options})
    lines: list[str] = [] if said is None else said
    return Pipeline(config, Registry(*plugins.load()), encoder, task, kinds, lines.append)


def start(*data: str, **options: Any) -> Start:
    said: list[str] = []
    return Start(said, pipeline(*data, said=said, **options).prepare())


def write(name: str, rows: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return name


def texts(number: int, word: str = "row") -> list[dict[str, str]]:
    return [{"text": f"{word} {i}"} for i in range(number)]


def test_the_second_start_reads_what_the_first_one_wrote(encoded: list[int]) -> None:
    name = write("a.jsonl", texts(20))
    first = start(name)
    assert encoded == [20]
    files = {path: path.stat().st_mtime_ns for path in first.prepared.folder.iterdir()}
    second = start(name)
    assert encoded == [20], "nothing was encoded again"
    assert {path: path.stat().st_mtime_ns for path in second.prepared.folder.iterdir()} == files
    assert second.said[0] == f"data: encoded earlier, read from the cache ({second.prepared.folder.name[:12]})"
    assert not any("cache" in line for line in first.said)
    copy_quarantine(first.prepared, Path())
    assert not Path("quarantine.jsonl").exists(), "no row was bad"
    assert second.tokens == first.tokens
    assert second.prepared.ledger == first.prepared.ledger
    assert second.prepared.task == RawText(), "detected the first time, remembered the second"
    assert second.prepared.identity == first.prepared.identity
    assert first.prepared.folder.parent == cache_root() / "encoded"


def test_a_damaged_entry_is_made_again(encoded: list[int]) -> None:
    name = write("a.jsonl", texts(20))
    first = start(name)
    before = first.tokens
    table = first.prepared.folder / "train-00000.arrow"
    table.write_bytes(table.read_bytes()[:-8])
    assert start(name).tokens == before
    (first.prepared.folder / "facts.json").unlink()
    assert start(name).tokens == before
    assert encoded == [20] * 3


@pytest.mark.parametrize(
    "change",
    [
        {"split": [0.5, 0.25, 0.25]}, {"seed": 1}, {"on_error": "skip"}, {"max_length": 100}, {"template": "alpaca"},
        {"task": RawText()}, {"kinds": (Conversation,)}, {"val_data": ["b.jsonl"]},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_whatever_decides_the_tokens_is_another_entry(encoded: list[int], change: dict[str, Any]) -> None:
    rows = [{"text": "a", "messages": [{"role": "assistant", "content": f"b {i}"}]} for i in range(9)]
    name = write("a.jsonl", rows)
    write("b.jsonl", rows[:1])
    for _ in range(2):  # the second time both are there
        start(name, task=Messages())
        start(name, **{"task": Messages(), **change})
        assert len(encoded) == 2


def test_other_content_is_another_entry_and_another_run(encoded: list[int]) -> None:
    name = write("a.jsonl", texts(9))
    first = start(name)
    write(name, texts(9, "ROW"))
    second = start(name)
    assert encoded == [9, 9]
    assert second.prepared.identity != first.prepared.identity
    assert second.tokens != first.tokens


def test_what_does_not_touch_the_tokens_is_the_same_entry(encoded: list[int]) -> None:
    name = write("a.jsonl", texts(9))
    start(name)
    start(name, learning_rate=1.0, epochs=9, max_lost=1.0, method="other")
    assert encoded == [9]


def test_a_moved_file_is_the_same_run_but_other_row_names() -> None:
    first = start(write("a.jsonl", texts(9)))
    second = start(write("b.jsonl", texts(9)))
    assert second.prepared.identity == first.prepared.identity
    assert [row[0] for row in second.tokens["train"]] == [row[0] for row in first.tokens["train"]]
    assert all(row.startswith("b.jsonl:") for rows in second.rows.values() for row in rows)


@pytest.fixture
def shout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads the class Shout from a module with the source that it is called with."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(source: str) -> type[RawText]:
        Path("shouting.py").write_text(source)
        importlib.invalidate_caches()
        sys.modules.pop("shouting", None)
        cls: type[RawText] = importlib.import_module("shouting").Shout
        return cls

    yield load
    sys.modules.pop("shouting", None)


def test_options_and_code_of_a_task_are_part_of_the_key(encoded: list[int], shout: Any) -> None:
    name = write("a.jsonl", texts(9))
    cls = shout(TASK)
    first = start(name, task=cls())
    start(name, task=cls("?"))
    start(name, task=cls("!"))
    assert encoded == [9, 9]
    edited = start(name, task=shout(TASK.replace("upper()", "lower() "))())
    assert encoded == [9, 9, 9], "an edited formatter never reads what the old one made"
    assert edited.tokens != first.tokens


def test_versions_of_what_renders_are_part_of_the_key_and_not_of_the_identity(
    encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write("a.jsonl", texts(9))
    first = start(name)
    monkeypatch.setattr("lightning_ft.data.pipeline.version", lambda library: f"another {library}")
    assert start(name).prepared.identity == first.prepared.identity
    assert encoded == [9, 9]


def test_code_beside_a_task_is_part_of_the_key(encoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    name = write("a.jsonl", texts(9))
    Path("loud").mkdir()
    Path("loud/__init__.py").write_text(TASK)
    monkeypatch.syspath_prepend(".")
    cls = importlib.import_module("loud").Shout
    for source in ("MARK = 1", "MARK = 1", "MARK = 2"):
        Path("loud/helper.py").write_text(source)
        start(name, task=cls())
    assert encoded == [9, 9]


def test_code_of_a_class_without_a_file(encoded: list[int]) -> None:
    """As in a notebook: there is no source to hash."""

    def load(source: str) -> Any:
        module = ModuleType("typed_in")
        sys.modules["typed_in"] = module
        exec(compile(source, "<cell>", "exec"), vars(module))
        return module.Shout()

    name = write("a.jsonl", texts(9))
    try:
        for source in (TASK, TASK, TASK.replace("upper", "lower")):
            start(name, task=load(source))
    finally:
        del sys.modules["typed_in"]
    assert encoded == [9, 9]


def test_ranks_that_start_together_do_the_work_once(encoded: list[int]) -> None:
    name = write("a.jsonl", texts(50))
    pipelines = [pipeline(name) for _ in range(4)]
    barrier = threading.Barrier(len(pipelines))
    found: list[Prepared] = []

    def run(one: Pipeline) -> None:
        barrier.wait()
        found.append(one.prepare())

    threads = [threading.Thread(target=run, args=(one,)) for one in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoded == [50]
    assert len({prepared.folder for prepared in found}) == 1
    assert [len(prepared.tables["train"]) for prepared in found] == [40] * 4


@pytest.mark.parametrize("blocked", ["cache", "cache/encoded"])
def test_a_cache_that_cannot_be_written_is_said_and_done_without(encoded: list[int], tmp_path: Path, blocked: str) -> None:
    name = write("a.jsonl", texts(9))
    path = tmp_path / blocked
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file where a folder should be")
    for _ in range(2):
        found = start(name)
        assert found.said[0].startswith("data: the cache folder cannot be written (")
        assert found.said[0].endswith("; encoded data will not be kept")
        assert not found.prepared.folder.is_relative_to(tmp_path / "cache")
        assert sum(map(len, found.rows.values())) == 9
    assert encoded == [9, 9]


def test_ten_thousand_rows(encoded: list[int]) -> None:
    """How long that takes is shown by the suite `tokenise` of the benchmarks."""
    name = write("a.jsonl", texts(10_000))
    for _ in range(2):
        found = start(name)
    assert sum(encoded) == 10_000
    assert {split: len(rows) for split, rows in found.rows.items()} == {"train": 8000, "validation": 1000, "test": 1000}


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    name = write("a.jsonl", texts(9))
    with pytest.raises(UsageError) as caught:
        start(name, test_data=[str(tmp_path / name)])
    expected = f"Expected each file once, got '{tmp_path / name}' in --data and in --test_data; take it out of one."
    assert str(caught.value) == expected
    Path("link.jsonl").symlink_to(name)
    with pytest.raises(UsageError, match=r"'link\.jsonl' in --val_data and in --test_data"):
        start(write("b.jsonl", texts(2)), val_data=[name], test_data=["link.jsonl"])
    assert sum(map(len, start(name, name).rows.values())) == 9, "twice under one flag is read once"


def test_examples_again() -> None:
    rows = [{"text": f"{i} \u20ac", "split": "test", "id": i} for i in range(3)]
    found = start(write("a.jsonl", [*rows, {"text": "x", "split": "train"}])).prepared
    assert found.examples("test", [2, 0]) == [Text(f"{i} \u20ac", {"split": "test", "id": i}) for i in (2, 0)]


BAD = ['{"text": 3}', '{"text": "half']


def test_bad_rows_stop_the_run_with_their_places() -> None:
    name = write("a.jsonl", [*texts(300), *BAD])
    with pytest.raises(DataError) as caught:
        start(name)
    said = str(caught.value)
    assert said.startswith("Expected every row to be readable, got 2 that are not; mend them, or ")
    assert "\n  a.jsonl:301: expected 'text' to be text, got a number" in said
    assert "\n  a.jsonl:302: " in said
    assert not list((cache_root() / "encoded").glob("*/facts.json")), "nothing half done is left"


def test_skipped_rows_are_kept_in_quarantine(tmp_path: Path, encoded: list[int]) -> None:
    name = write("a.jsonl", [*texts(150), *BAD, *texts(150, "more")])
    for run in (tmp_path / "run_1", tmp_path / "run_2"):
        run.mkdir()
        found = start(name, on_error="skip")
        copy_quarantine(found.prepared, run)
        kept = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
        assert sorted((row["file"], row["line"]) for row in kept) == [("a.jsonl", 151), ("a.jsonl", 152)]
        assert {row["raw"] for row in kept} == set(BAD)
        total = found.prepared.ledger.total
        assert (total.read, total.used, total.failed) == (302, 300, 2)
    assert encoded == [300], "the second run found them in the cache"


def test_too_many_bad_rows_are_not_skipped() -> None:
    with pytest.raises(DataError, match="Expected --on_error skip to leave out at most 1 % of the rows, got 2 of 102"):
        start(write("a.jsonl", [*texts(100), *BAD]), on_error="skip")


def test_rows_without_anything_to_train_are_accounted_for() -> None:
    asked = [{"messages": [{"role": "user", "content": f"q {i}"}]} for i in range(3)]
    answered = [{"messages": [*row["messages"], {"role": "assistant", "content": "a"}]} for row in asked]
    total = start(write("a.jsonl", [*asked, *answered]), split=[1.0, 0.0]).prepared.ledger.total
    assert (total.read, total.train, sum(total.dropped.values())) == (6, 3, 3)


def test_long_rows_are_refused_also_from_the_cache(encoded: list[int]) -> None:
    name = write("a.jsonl", [{"text": "x" * 60} for _ in range(4)] + texts(16))
    for _ in range(2):
        with pytest.raises(CheckFailedError, match=r"^Expected --max_length 20 to cut at most 5 % of the rows .* got 20 %"):
            start(name, max_length=20)
    assert start(name, max_length=20, max_lost=0.2).prepared.ledger.total.truncated == 4
    assert encoded == [20]
