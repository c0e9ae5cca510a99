"""A stream trains what is read, each row once in each pass, and never holds more than it says."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft import plugins
from lightning_ft.config import TrainingConfig
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.datamodule import FineTuneData
from lightning_ft.data.encode import Encoder
from lightning_ft.data.ledger import HELD_OUT
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.render import Template
from lightning_ft.data.window import Position, Window
from lightning_ft.errors import CheckFailedError, DataError, TrainingError, UsageError
from lightning_ft.registry import Registry
from lightning_ft.run.folder import RunFolder
from lightning_ft.run.planning import Planner
from lightning_ft.run.world import World
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.data.stream import Stream

ROWS = 90


@pytest.fixture(autouse=True)
def _own_folder_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}", "response": "answer " * (1 + number % 5), **more}


def write(name: str, rows: Sequence[Any]) -> str:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows)
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return name


def three_files() -> list[str]:
    return [
        write("a.jsonl", [row(n) for n in range(35)]), write("b.jsonl.gz", [row(n) for n in range(35, 36)]),
        write("c.jsonl", [row(n) for n in range(36, ROWS)]),
    ]  # fmt: skip


class Run:
    """The data of a run as a session makes them."""

    def __init__(self, data: list[str], *, workers: int = 0, **options: Any) -> None:
        tokenizer = tiny_tokenizer()
        given = {"model": "m", "data": data, "stream": 20, "max_steps": 30, "batch_size": 4, "split": [0.8, 0.1, 0.1]}
        self.config = TrainingConfig(**{**given, **options})
        encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 256)
        self.said: list[str] = []
        task = options.get("task")
        self.pipeline = Pipeline(self.config, Registry(*plugins.load()), encoder, task, (Conversation,), self.said.append)
        self.prepared: Prepared = self.pipeline.prepare()
        self.planner = Planner(self.config, World(1, 1, 0), packed=True, micro_tokens=512)
        self.schedule = self.planner.whole(self.prepared.tables["train"], self.said.append)
        Path("run").mkdir(exist_ok=True)
        self.stream: Stream = self.planner.stream(
            self.pipeline, self.prepared, self.schedule, RunFolder(Path("run")), self.said.append
        )
        self.data = FineTuneData(self.prepared.tables, self.schedule, 0, stream=self.stream, workers=workers)

    def rows(self, number: int) -> list[str]:
        """The rows of a step, in any order."""
        return sorted(name for micro in self.data.build(number).micro for name in micro.rows)

    def passes(self) -> Iterator[tuple[int, list[str]]]:
        """The rows of each step, and the pass over the source that it belongs to."""
        for number in range(self.stream.total_steps):
            self.stream.ahead(number, number)
            yield int(self.stream.epoch_of(number + 1)), self.rows(number)

    def held_out(self) -> list[str]:
        """Names of the rows in validation and test."""
        tables = [self.prepared.tables["validation"], self.prepared.tables["test"]]
        return sorted(table[i].row for table in tables for i in range(len(table)))

    def close(self) -> None:
        self.stream.close(finished=True)


@pytest.fixture
def runs() -> Iterator[Any]:
    made: list[Run] = []

    def make(data: list[str], **options: Any) -> Run:
        made.append(Run(data, **options))
        return made[-1]

    yield make
    for run in made:
        run.close()


def names() -> list[str]:
    return [f"a.jsonl:{n}" for n in range(1, 36)] + ["b.jsonl.gz:1"] + [f"c.jsonl:{n}" for n in range(1, ROWS - 35)]


def test_windows_have_every_row_once_and_every_problem_once() -> None:
    lines: list[Any] = [row(n) for n in range(11)]
    for place in (0, 4, 5, 11, 14):
        lines.insert(place, '{"broken')
    files = [Path(write("a.jsonl", lines)), Path(write("b.jsonl", [row(n) for n in range(3)]))]
    for size in range(1, 16):
        start, found, problems, turns = Position(), [], [], 0
        while start.turn == 0:
            window, bad = Window(start, size), BadRows("skip")
            part = [made.id for path in files for made in window.read(path, bad, lambda: None)]
            assert len(part) == size or window.end.turn == 1
            found += part
            problems += [problem.line for problem in bad.problems]
            assert bad.unreadable == bad.count == len(bad.problems)
            assert window.end > start
            start, turns = window.end, turns + 1
        good = [f"a.jsonl:{n}" for n, line in enumerate(lines, start=1) if isinstance(line, dict)]
        assert found == [*good, "b.jsonl:1", "b.jsonl:2", "b.jsonl:3"]
        assert problems == [n for n, line in enumerate(lines, start=1) if isinstance(line, str)]


def test_a_pass_trains_every_row_once_and_what_is_held_out_never(runs: Any) -> None:
    run = runs(three_files(), max_steps=60)
    of_pass: dict[int, list[str]] = {}
    for turn, rows in run.passes():
        of_pass.setdefault(turn, []).extend(rows)
    assert set(of_pass) == {0, 1, 2}
    kept = sorted(set(names()) - set(run.held_out()))
    assert sorted(of_pass[0]) == sorted(of_pass[1]) == kept
    assert of_pass[0] != of_pass[1], "another pass, another order"
    assert len(run.held_out()) == 4
    assert all(name.startswith("a.jsonl") and int(name.rpartition(":")[2]) <= 20 for name in run.held_out())


def test_the_same_prompt_later_is_left_out_and_counted(runs: Any) -> None:
    data = [write("a.jsonl", [row(n) for n in range(20)]), write("b.jsonl", [row(n) for n in range(10, 40)])]
    run = runs(data, stream=20, max_steps=12)
    held = {name.rpartition(":")[2] for name in run.held_out()}
    again = {f"b.jsonl:{int(line) - 10}" for line in held if int(line) > 10}
    trained = {name for _, rows in run.passes() for name in rows}
    assert again
    assert not again & trained
    ledger = json.loads(Path("run/ledger.json").read_text())
    assert ledger["sources"]["b.jsonl"]["dropped"] == {HELD_OUT: len(again)}


def test_the_same_group_later_is_left_out(runs: Any) -> None:
    """Turns of one conversation never stand in training and in the test."""
    talks = [row(n, conversation_id=n % 10) for n in range(60)]
    run = runs([write("a.jsonl", talks)], max_steps=24)
    held = {(int(name.rpartition(":")[2]) - 1) % 10 for name in run.held_out()}
    trained = {(int(name.rpartition(":")[2]) - 1) % 10 for _, rows in run.passes() for name in rows}
    assert held
    assert not held & trained
    assert held | trained == set(range(10))


def test_what_is_held_out_stays_so_where_a_row_stands_for_several(runs: Any) -> None:
    """A row of a list of instances is known again by the row in the file."""
    answers = [[{"input": "", "output": f"{n} {k}"} for k in (1, 2)] for n in range(50)]
    asked = [{"name": f"task {n}", "instruction": f"Do {n}.", "instances": both} for n, both in enumerate(answers)]
    run = runs([write("a.jsonl", asked)], max_steps=60)
    held = {name.partition("#")[0] for name in run.held_out()}
    turns: dict[int, set[str]] = {}
    for turn, rows in run.passes():
        turns.setdefault(turn, set()).update(name.partition("#")[0] for name in rows)
    assert len(turns) > 1
    assert held
    assert all(not held & found for found in turns.values())


def test_shots_come_from_a_file(runs: Any) -> None:
    from lightning_ft_tasks.instruct import Instruct

    data = three_files()
    with pytest.raises(UsageError, match=r"^Expected --task\.shots_from FILE with --stream"):
        runs(data, task=Instruct(shots=2))
    shown = write("shown.jsonl", [row(n) for n in range(500, 510)])
    run = runs([write("a.jsonl", [row(n) for n in range(40)])], max_steps=24, task=Instruct(shots=2, shots_from=shown))
    trained = {name for _, rows in run.passes() for name in rows}
    assert run.held_out()
    assert not trained & set(run.held_out())


def test_a_bad_row_in_a_short_last_shard_is_one_of_the_source(runs: Any) -> None:
    rows: list[Any] = [row(n) for n in range(200)]
    run = runs([write("a.jsonl", [*rows, '{"prompt": "half'])], stream=200, max_steps=60, on_error="skip")
    assert {turn for turn, _ in run.passes()} == {0, 1}


def test_rows_that_say_that_they_are_no_training_rows_are_none(runs: Any) -> None:
    split = ["train"] * 16 + ["validation"] * 2 + ["test"] * 2 + ["train", "dev", "train", "test"] * 5
    run = runs([write("a.jsonl", [row(n, split=name) for n, name in enumerate(split)])], max_steps=8)
    trained = {name for turn, rows in run.passes() for name in rows if turn == 0}
    assert trained == {f"a.jsonl:{n}" for n, name in enumerate(split, start=1) if name == "train"}
    assert run.held_out() == sorted(f"a.jsonl:{n}" for n in range(17, 21))


@pytest.mark.parametrize("number", [0, 3, 4, 9, 17, 25, 29])
def test_step_n_of_a_resumed_run_is_step_n(runs: Any, number: int) -> None:
    """A process that starts at step n encodes its shard alone, and gets the rows that the run before has had."""
    first = runs(three_files())
    expected = {n: rows for n, (_, rows) in enumerate(first.passes())}
    index = Path("run/stream.json").read_bytes()
    first.close()
    again = runs(three_files())
    built: list[Position] = []
    encode = again.stream._encode

    def counted(start: Position, *rest: Any) -> None:
        built.append(start)
        encode(start, *rest)

    again.stream._encode = counted
    for n in range(number, min(number + 3, 30)):
        assert again.rows(n) == expected[n]
    assert len(built) <= 2
    for n in range(number, 30):
        again.stream.ahead(n, n)
        assert again.rows(n) == expected[n]
    assert Path("run/stream.json").read_bytes() == index


def test_files_that_have_changed_are_refused(runs: Any) -> None:
    """In the middle, where neither size nor ends of the file say so."""
    many = [row(n) for n in range(60)]
    first = runs([write("a.jsonl", many)], max_steps=14)
    list(first.passes())
    first.close()
    many[40]["response"] = many[40]["response"].upper()
    again = runs([write("a.jsonl", many)], max_steps=14)
    with pytest.raises(DataError, match=r"Expected the rows of shard 3 \(from row 41 of file 1\) and their batches"):
        again.rows(13)


@pytest.mark.parametrize(("ahead", "most"), [(0, 2), (3, 3)])
def test_only_two_shards_are_on_disk(runs: Any, ahead: int, most: int) -> None:
    """A third one for a moment where loader workers build steps in advance."""
    run = runs(three_files(), max_steps=60)
    seen = []
    for number in range(60):
        run.stream.ahead(number, max(0, number - ahead))
        run.rows(number)
        if run.stream._thread is not None:
            run.stream._thread.join()
        seen.append(len(list(run.stream._work.glob("shard-*"))))
    assert max(seen) == most
    assert seen[-1] <= 2
    run.close()
    assert not run.stream._work.parent.exists()


def test_a_bad_row_stops_the_run_where_it_is_met(runs: Any) -> None:
    rows: list[Any] = [row(n) for n in range(60)]
    rows[45] = '{"prompt": "half'
    run = runs([write("a.jsonl", rows)])
    with pytest.raises(DataError, match=r"^a\.jsonl:46: "):
        list(run.passes())


def test_a_bad_row_may_be_skipped_and_is_kept(runs: Any) -> None:
    rows: list[Any] = [row(n) for n in range(360)]
    rows[145] = '{"prompt": "half'
    run = runs([write("a.jsonl", rows)], stream=120, max_steps=100, on_error="skip")
    trained = [name for turn, rows in run.passes() for name in rows if turn == 0]
    assert len(trained) == len(set(trained)) == 359 - len(run.held_out())
    (line,) = Path("run/quarantine-00001.jsonl").read_text().splitlines()
    assert (json.loads(line)["file"], json.loads(line)["line"]) == ("a.jsonl", 146)
    assert json.loads(Path("run/ledger.json").read_text())["total"]["failed"] == 1


def test_too_many_cut_rows_stop_the_run(runs: Any) -> None:
    rows = [row(n) for n in range(20)] + [{"prompt": "long", "response": "word " * 120}] * 20
    run = runs([write("a.jsonl", rows)])
    with pytest.raises(CheckFailedError, match="--max_lost"):
        list(run.passes())


def test_workers_find_the_shards_that_the_main_process_encodes(runs: Any) -> None:
    from types import SimpleNamespace

    run = runs(three_files(), workers=2)
    trainer: Any = SimpleNamespace(global_step=0, global_rank=0)
    run.data.trainer = trainer
    found = []
    for step in run.data.train_dataloader():
        found.append((step.number, sorted(name for micro in step.micro for name in micro.rows)))
        trainer.global_step += 1
    run.close()
    assert [number for number, _ in found] == list(range(30))
    alone = runs(three_files())
    assert [rows for _, rows in found] == [rows for _, rows in alone.passes()]


def test_the_first_shard_has_to_be_the_same(runs: Any) -> None:
    many = [row(n) for n in range(60)]
    first = runs([write("a.jsonl", many)], max_steps=14)
    list(first.passes())
    first.close()
    for changed in many[:20]:
        changed["response"] = "something else"
    with pytest.raises(DataError, match=r"Expected the rows of shard 1 \(from row 1 of file 1\) and their batches"):
        runs([write("a.jsonl", many)], max_steps=14)


def test_batches_that_are_cut_otherwise_are_refused(runs: Any) -> None:
    first = runs(three_files())
    list(first.passes())
    first.close()
    with pytest.raises(DataError, match=r"shard 1 .* and their batches to be those"):
        runs(three_files(), batch_size=3)
    with pytest.raises(DataError, match=r"shard 2 .* and their batches to be those"):
        runs(three_files(), batch_size=5).rows(5)  # the first shard has four steps either way


def test_encoding_stops_where_it_is(runs: Any) -> None:
    """Also while it looks for the first row of a shard."""
    run = runs(three_files())
    stop = threading.Event()
    stop.set()
    for start in (Position(0, 0, 20), Position(0, 2, 50)):
        Path("half").mkdir(exist_ok=True)
        with pytest.raises(TrainingError, match="The run ended"):
            run.pipeline.encode_shard(start, frozenset(), Path("half"), stop)


def test_rows_before_a_window_can_be_stopped_at() -> None:
    path, calls = Path(write("a.jsonl", [row(n) for n in range(40)])), []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TrainingError("stop")

    bad = BadRows("fail")
    with pytest.raises(TrainingError, match="stop"):
        list(Window(Position(0, 0, 30), 5, frozenset()).read(path, bad, check))
    assert (len(calls), bad.muted) == (3, False)


def test_a_shard_that_is_there_is_opened_while_another_one_is_encoded(runs: Any) -> None:
    """Workers and other ranks would else wait for a whole shard each time that one begins."""
    from lightning_ft.atomic import one_at_a_time

    first = runs(three_files())
    expected = [rows for _, rows in first.passes()]
    first.stream._work.mkdir(parents=True, exist_ok=True)
    place = first.stream._opened[1].first
    beside = runs(three_files())
    found: list[list[str]] = []
    with one_at_a_time(first.stream._work / "lock"):
        reader = threading.Thread(target=lambda: found.append(beside.rows(place)), daemon=True)
        reader.start()
        reader.join(20)
    assert found == [expected[place]]


def test_files_for_validation_stay_beside_a_stream(runs: Any) -> None:
    apart = write("val.jsonl", [row(n) for n in range(200, 210)])
    run = runs(three_files(), val_data=[apart], max_steps=24)
    table = run.prepared.tables["validation"]
    assert [table[i].row for i in range(len(table))] == [f"val.jsonl:{n}" for n in range(1, 11)]
    trained = {name for _, rows in run.passes() for name in rows}
    assert not trained & set(run.held_out())
    assert {name.partition(":")[0] for name in trained} == {"a.jsonl", "b.jsonl.gz", "c.jsonl"}


def test_the_end_of_a_run_does_not_wait_for_a_shard(runs: Any) -> None:
    run = runs(three_files())
    begun, seen = threading.Event(), []

    def encode(start: Position, folder: Path, stop: threading.Event) -> None:
        begun.set()
        seen.append(stop.wait(60))
        raise RuntimeError("ended")

    run.stream._encode = encode
    run.stream.ahead(0, 0)
    assert begun.wait(60)
    run.close()
    assert seen == [True]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_steps": None}, "Expected --max_steps with --stream, as the number of rows is not known before; got none."),
        ({"mix": {"a": 1.0}}, "Expected --stream without --mix, which needs all rows before the first step; got both."),
        ({"holdout_tasks": ["a"]}, "Expected --stream without --holdout_tasks, which needs all rows before the first step;"),
        ({"stream": 0}, "Expected --stream to be above 0; got 0."),
        ({"stream": 2.5}, "Expected --stream to be a whole number; got 2.5."),
    ],
)
def test_what_cannot_be_streamed_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainingConfig(**{"model": "m", "data": ["a.jsonl"], "stream": 10, "max_steps": 5, **options})
    assert str(caught.value).startswith(sentence)
