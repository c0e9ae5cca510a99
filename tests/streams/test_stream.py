"""A stream trains what is read, each row once in each pass, and never what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.ledger import HELD_OUT
from lightning_ft.data.window import Position, Window
from lightning_ft.errors import CheckFailedError, DataError, TrainingError, UsageError
from tests.streams.made import names, row, three_files, write


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


def test_files_for_validation_stay_beside_a_stream(runs: Any) -> None:
    apart = write("val.jsonl", [row(n) for n in range(200, 210)])
    run = runs(three_files(), val_data=[apart], max_steps=24)
    table = run.prepared.tables["validation"]
    assert [table[i].row for i in range(len(table))] == [f"val.jsonl:{n}" for n in range(1, 11)]
    trained = {name for _, rows in run.passes() for name in rows}
    assert not trained & set(run.held_out())
    assert {name.partition(":")[0] for name in trained} == {"a.jsonl", "b.jsonl.gz", "c.jsonl"}
