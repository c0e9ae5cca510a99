"""Files of which nothing, or not everything, can be read are reported all the same; nothing else can be done with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lightning_ft_datatools import check, prepare, select
from lightning_ft_datatools.command import main

from lightning_ft.errors import DataError, UsageError

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch


def test_a_file_whose_only_row_is_bad_has_a_report(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    name = scratch.write("rows.jsonl", ['{"prompt": "half'])
    assert main(["check", name, "--strict", "--output", "report.html"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows.jsonl: 1 row, none of which can be read"
    assert "  rows.jsonl:1: unreadable: expected valid JSON" in "\n".join(lines)
    assert "- 1 row has errors: mend it, or take it out with --fix OUT." in lines
    with pytest.raises(DataError, match=r"^rows\.jsonl: expected rows that are left after cleaning, got none; mend them first"):
        main(["check", name, "--fix", "out.jsonl"])
    assert not Path("out.jsonl").exists()
    assert "none of which can be read" in Path("report.html").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match=r"^Expected --task to be one of .* got 'instrct'. Did you mean 'instruct'"):
        check(name, task="instrct")
    report = check(name)
    assert (report.is_valid, report.total_examples, report.rows_read, report.task) == (False, 0, 1, None)


@pytest.mark.parametrize(("rows", "got"), [([], "an empty file"), (["", ""], "a file without rows")])
def test_a_file_without_rows_is_an_error(scratch: Scratch, rows: list[str], got: str) -> None:
    name = scratch.write("rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        main(["check", name])
    assert str(caught.value) == f"rows.jsonl: expected at least one row, got {got}; check how it was written."


def test_nothing_of_such_a_file_can_be_reviewed_or_prepared(scratch: Scratch) -> None:
    name = scratch.write("rows.jsonl", ["{broken", "{broken"])
    with pytest.raises(DataError, match=r"^rows.jsonl: expected rows to review, got none that can be read; `data check` says"):
        main(["review", name, "--output", "kept.jsonl"])
    with pytest.raises(DataError, match=r"^rows\.jsonl: "):
        main(["prepare", name, "--output", "ready"])
    assert not list(Path("ready").glob("*"))
    assert not Path("kept.jsonl").exists()


def test_what_cannot_be_read_is_kept_as_it_was(scratch: Scratch) -> None:
    good = [{"question": f"Where is number {n}?", "answer": f"It is over there, at the door {n}."} for n in range(3)]
    name = scratch.write("rows.jsonl", [*good, '{"question": "half'])
    assert main(["check", name, "--fix", "out.jsonl"]) == 0
    (taken,) = scratch.read("out.quarantine.jsonl")
    assert (taken["row"], taken["raw"]) == ("rows.jsonl:4", '{"question": "half')
    assert len(scratch.read("out.jsonl")) == 3


def test_json_on_standard_output_is_nothing_else(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    name = scratch.write("rows.jsonl", [{"question": "Where is it?", "answer": "It is over there."}, "{broken"])
    assert main(["check", name, "--json", "-", "--output", "report.html", "--fix", "out.jsonl"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows_read"] == 2
    assert "raw" not in json.loads(said.out)["issues"][0]
    assert "report: report.html" in said.err
    assert "fixed: out.jsonl" in said.err


@pytest.mark.parametrize(
    "flags", [("--fix", "no/out.jsonl"), ("--json", "no/x.json"), ("--output", "no/x.html"), ("--fix", "x.csv")]
)
def test_a_target_that_cannot_be_written_is_told_first(
    scratch: Scratch, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    name = scratch.write("rows.jsonl", [{"question": "Where is it?", "answer": "It is over there."}])
    with pytest.raises(UsageError, match=r"(Expected a folder for 'no/|Expected --fix to name a \.jsonl file)"):
        main(["check", name, *flags])
    assert capsys.readouterr().out == ""


def test_lower_case_does_not_break_a_layout(scratch: Scratch) -> None:
    texts = [{"text": f"### Instruction:\nSay {n}.\n\n### Response:\nI say it {n} times."} for n in range(3)]
    name = scratch.write("rows.jsonl", texts)
    with pytest.raises(
        UsageError, match=r"Expected --lower for rows without a layout of their own, got rows.jsonl:1 of task templ"
    ):
        main(["check", name, "--fix", "out.jsonl", "--lower"])
    assert not Path("out.jsonl").exists()


def test_paths_are_names_too(scratch: Scratch) -> None:
    name = Path(scratch.write("rows.jsonl", [{"question": "Where is it?", "answer": "It is over there."}]))
    assert check(name).total_examples == len(select([name], 1)) == 1
    with pytest.raises(UsageError, match=r"^Expected the name of a folder for what is prepared, got the file 'rows.jsonl'"):
        prepare(name, name)
