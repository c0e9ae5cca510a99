"""Which rows train, and which are held out, as the pipeline of a run decides it."""

from pathlib import Path

from lightning_ft_tasks.instruct import Instruct

from lightning_ft.data.split import SPLITS
from tests.test_pipeline import _own_folder_and_cache, start, texts, write  # noqa: F401  # a fixture of every test


def test_shares() -> None:
    found = start(write("a.jsonl", texts(100)), split=[0.7, 0.2, 0.1])
    assert {split: len(rows) for split, rows in found.rows.items()} == {"train": 70, "validation": 20, "test": 10}
    assert len(set().union(*found.rows.values())) == 100


def test_rows_are_kept_together_by_all_that_they_ask() -> None:
    """The same instruction with another input asks something else; an answer, or a remark beside it, asks nothing."""
    rows = [
        {"instruction": "Name its colour.", "input": f"Thing {i // 2}", "output": f"It is {i}.", "remark": i}
        for i in range(200)
    ]
    found = start(write("a.jsonl", rows), task=Instruct()).rows
    assert {split: len(names) for split, names in found.items()} == {"train": 160, "validation": 20, "test": 20}
    for names in found.values():
        numbers = {int(name.removeprefix("a.jsonl:")) - 1 for name in names}
        assert {number ^ 1 for number in numbers} == numbers, "two answers to one question stay together"


def test_a_split_column_is_followed() -> None:
    rows = [{"text": f"{i}", "split": word} for i, word in enumerate(["train", "dev", "TEST", "train", "valid"])]
    assert start(write("a.jsonl", rows)).rows == {
        "train": ["a.jsonl:1", "a.jsonl:4"], "validation": ["a.jsonl:2", "a.jsonl:5"], "test": ["a.jsonl:3"],
    }  # fmt: skip


def test_files_of_their_own() -> None:
    data, held, last = write("a.jsonl", texts(20)), write("v.jsonl", texts(3, "v")), write("t.jsonl", texts(2, "t"))
    found = start(data, val_data=[held], test_data=[last]).rows
    assert found["validation"] == ["v.jsonl:1", "v.jsonl:2", "v.jsonl:3"]
    assert found["test"] == ["t.jsonl:1", "t.jsonl:2"]
    assert sorted(found["train"]) == sorted(f"a.jsonl:{i}" for i in range(1, 21))
    only = start(data, val_data=[held], split=[0.8, 0.1, 0.1]).rows
    assert only["validation"] == found["validation"]
    assert {split: len(only[split]) for split in ("train", "test")} == {"train": 18, "test": 2}, "20 rows by 8 : 1"
    two = start(data, test_data=[last], split=[0.9, 0.1]).rows
    assert {split: len(two[split]) for split in SPLITS} == {"train": 18, "validation": 2, "test": 2}


def test_a_folder_of_files_that_are_named_after_splits() -> None:
    for name, number in (("train-0", 10), ("train-1", 10), ("dev", 3), ("test", 2)):
        write(f"set/{name}.jsonl", texts(number, name))
    found = start("set").rows
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "validation": 3, "test": 2}
    assert {row.split(":")[0] for row in found["train"]} == {"set/train-0.jsonl", "set/train-1.jsonl"}
    Path("set/test.jsonl").unlink()
    found = start("set").rows
    assert {split: len(rows) for split, rows in found.items()} == {"train": 18, "validation": 3, "test": 2}
    assert not any("dev" in row for row in found["train"] + found["test"])
