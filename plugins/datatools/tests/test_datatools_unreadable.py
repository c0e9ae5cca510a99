"""Files of which nothing, or not everything, can be read are reported all the same; nothing else can be done with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lightning_ft_datatools import check
from lightning_ft_datatools.command import main

from lightning_ft.errors import DataError

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch


def test_a_file_whose_only_row_is_bad_has_a_report(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    name = scratch.write("rows.jsonl", ['{"prompt": "half'])
    assert main(["check", name, "--strict", "--fix", "out.jsonl", "--output", "report.html"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows.jsonl: 1 row, none of which can be read"
    assert "  rows.jsonl:1: unreadable: expected valid JSON" in "\n".join(lines)
    assert "- 1 row has errors: mend it, or take it out with --fix OUT." in lines
    assert lines[-1].startswith("fixed: out.jsonl (kept: 0, changed among them: 0), out.quarantine.jsonl (taken out: 1)")
    assert Path("out.jsonl").read_text(encoding="utf-8") == ""
    assert json.loads(Path("out.quarantine.jsonl").read_text(encoding="utf-8"))["row"] == "rows.jsonl:1"
    assert "none of which can be read" in Path("report.html").read_text(encoding="utf-8")
    report = check(name)
    assert (report.is_valid, report.total_examples, report.rows_read, report.task) == (False, 0, 1, "")


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
