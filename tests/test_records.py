"""What a record may be at most, and names and line ends that no text has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.sources import expand, read_rows
from lightning_ft.data.text import MAX_RECORD, MOST_NESTED
from lightning_ft.errors import DataError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(name: str, content: str) -> list[object]:
    Path(name).write_text(content, encoding="utf-8")
    return [row.values for row in read_rows(Path(name), BadRows("fail"))]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json"])
def test_a_huge_record_is_an_error_and_the_next_one_is_read(name: str) -> None:
    huge = "a" * (MAX_RECORD + 10)
    content = {
        "x.jsonl": f'{{"q": "{huge}"}}\n{{"q": "b"}}\n',
        "x.csv": f"q\n{huge}\nb\n",
        "x.json": f'[{{"q": "{huge}"}}, {{"q": "b"}}]',
    }[name]
    Path(name).write_text(content)
    bad = BadRows("fail")
    assert [row.values for row in read_rows(Path(name), bad)] == [{"q": "b"}]
    (problem,) = bad.problems
    assert problem.reason == "expected a record of at most 8 MiB, got a longer one; split it into several rows"
    assert problem.line == (2 if name == "x.csv" else 1)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_values_within_values_have_a_depth(name: str) -> None:
    """Far below what Python's own stack would take, so that nothing that walks a row has to fear it."""
    for depth, good in ((MOST_NESTED - 2, True), (MOST_NESTED + 1, False), (900, False)):
        row = '{"q": ' + "[" * depth + "]" * depth + "}"
        Path(name).write_text(f"{row}\n" if name == "x.jsonl" else f"[{row}]")
        bad = BadRows("fail")
        assert len(list(read_rows(Path(name), bad))) == good
        assert [problem.reason.partition(" at ")[0] for problem in bad.problems] == [
            'expected valid JSON, got "Nested too deeply"'
        ] * (not good)


def test_many_brackets_are_not_deep() -> None:
    assert len(read("x.jsonl", '{"q": [' + ", ".join(["[1]"] * 500) + "]}\n")) == 1


def test_a_name_that_is_no_text_is_refused() -> None:
    name = os.fsdecode(b"x\xff.jsonl")
    Path(name).write_text('{"text": "a"}\n')
    for given in (name, "*.jsonl", "."):
        with pytest.raises(DataError, match=r"^Expected names of files in UTF-8, got '.*x\\udcff\.jsonl'; rename it\.$"):
            expand([given])


def test_line_ends_of_another_age_are_named() -> None:
    Path("x.jsonl").write_bytes(b'{"q": "a"}\r{"q": "b"}\r')
    bad = BadRows("fail")
    assert list(read_rows(Path("x.jsonl"), bad)) == []
    assert str(bad.problems[0]) == (
        "x.jsonl:1: expected lines that end with a line feed, got carriage returns; convert the file with tr '\\r' '\\n'"
    )
    Path("y.jsonl").write_bytes(b'{"q":\r"a"}')
    assert [row.values for row in read_rows(Path("y.jsonl"), BadRows("fail"))] == [{"q": "a"}], "white space of one row"
