"""A shard is encoded while another one trains, is the same after a kill, and is gone when it is over."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lightning_ft.config import TrainingConfig
from lightning_ft.data.window import Position
from lightning_ft.errors import DataError, TrainingError, UsageError
from tests.streams.made import row, three_files, write


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


def test_workers_find_the_shards_that_the_main_process_encodes(runs: Any) -> None:
    from types import SimpleNamespace

    run = runs(three_files(), workers=2)
    trainer: Any = SimpleNamespace(global_step=0, lightning_module=SimpleNamespace(data_place=(0, 1)))
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
