"""What an evaluation takes over from the run that its model comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lightning_ft.run.folder import run_around
from lightning_ft.run.inherited import reads_of, trained_on

if TYPE_CHECKING:
    from collections.abc import Mapping

ROWS = [{"ask": "Is it open?", "reply": "Until six.", "text": "Doors", "label": "hours"}] * 3


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def run(name: str, task: Mapping[str, Any] | None, **options: Any) -> str:
    folder = Path("runs", name)
    (folder / "checkpoints" / "checkpoint-step-3").mkdir(parents=True)
    (folder / "final_model").mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": task, **options}))
    return str(folder)


OWN = {"name": "instruct", "question_column": "ask", "answer_column": "reply"}


def test_a_run_is_found_from_its_models() -> None:
    folder = run("a", OWN)
    for inside in ("", "final_model", "checkpoints/checkpoint-step-3"):
        found = run_around(str(Path(folder, inside)))
        assert found is not None
        assert found.resolve() == Path(folder).resolve()
    for other in ("runs", "embedded", "owner/name", "rows.jsonl"):
        assert run_around(other) is None


def test_the_task_is_that_of_the_run_with_its_options() -> None:
    found, said = reads_of([run("a", OWN)], ["rows.jsonl"], {})
    task = found["task"]
    assert (task.name, task.question_column, task.answer_column) == ("instruct", "ask", "reply")
    assert found["columns"] == {}
    assert said == "instruct, as in run 'runs/a'"


def test_columns_of_the_run_are_renamed_unless_the_user_renames_others() -> None:
    folder = run("a", {"name": "instruct"}, columns={"instruction": "ask", "output": "reply"})
    assert reads_of([folder], ["rows.jsonl"], {})[0]["columns"] == {"instruction": "ask", "output": "reply"}
    mine = {"instruction": "text", "output": "label"}
    assert reads_of([folder], ["rows.jsonl"], mine)[0]["columns"] == mine


def test_columns_that_the_rows_lack_are_not_renamed() -> None:
    """The run's files called them otherwise; these have the task's own names."""
    Path("own.jsonl").write_text(json.dumps({"instruction": "Is it open?", "output": "Until six."}) + "\n")
    folder = run("a", {"name": "instruct"}, columns={"instruction": "ask", "output": "reply|answer"})
    found, said = reads_of([folder], ["own.jsonl"], {})
    assert (found["task"].name, found["columns"]) == ("instruct", {})
    assert said == "instruct, as in run 'runs/a'"


def test_a_row_that_stands_for_several_is_read() -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]}
    Path("several.jsonl").write_text(json.dumps(row) + "\n")
    found, _ = reads_of([run("a", {"name": "self_instruct"})], ["several.jsonl"], {})
    assert found["task"].name == "self_instruct"


def test_a_run_without_readable_options_keeps_nobody_from_evaluating() -> None:
    folder = run("a", OWN)
    Path(folder, "config.yaml").write_text("- 1\n")
    found, said = reads_of([folder], ["rows.jsonl"], {})
    assert found == {}
    assert said.startswith("by the columns, as the task of run 'runs/a' is not there (Expected ")


def test_rows_that_the_task_does_not_read_are_taken_by_their_columns() -> None:
    assert reads_of([run("a", {"name": "instruct"})], ["rows.jsonl"], {}) == (
        {}, "by the columns, as the task instruct of run 'runs/a' does not read them",
    )  # fmt: skip
    found, said = reads_of([run("b", {"name": "gone"})], ["rows.jsonl"], {})
    assert found == {}
    assert said.startswith("by the columns, as the task of run 'runs/b' is not there (Expected --task to be one of")


def test_the_first_of_several_models_that_reads_them_decides() -> None:
    models = ["embedded", run("a", {"name": "instruct"}), run("b", OWN), run("c", {"name": "classify"})]
    found, said = reads_of(models, ["rows.jsonl"], {})
    assert found["task"].answer_column == "reply"
    assert said == "instruct, as in run 'runs/b'"


def test_without_a_run_nothing_is_said() -> None:
    assert reads_of(["embedded"], ["rows.jsonl"], {}) == ({}, "")
    assert reads_of([run("a", OWN)], ["gone.jsonl"], {}) == ({}, "")


def test_files_that_the_run_had_are_known_by_their_contents() -> None:
    folder = run("a", OWN)
    files = {"elsewhere/rows.jsonl": "12ab", "elsewhere/test.jsonl": "56ef"}
    Path(folder, "run.json").write_text(json.dumps({"data": {"files": files}}))
    assert trained_on(folder, {"rows.jsonl": "12ab"}) == []
    sources = {"elsewhere/rows.jsonl": {"train": 3, "test": 1}, "elsewhere/test.jsonl": {"train": 0, "test": 2}}
    Path(folder, "ledger.json").write_text(json.dumps({"sources": sources}))
    assert trained_on(folder, {"rows.jsonl": "12ab", "test.jsonl": "56ef", "new.jsonl": "34cd"}) == ["rows.jsonl"]
    assert trained_on("embedded", {"rows.jsonl": "12ab"}) == []
    assert trained_on(run("b", OWN), {"rows.jsonl": "12ab"}) == []
