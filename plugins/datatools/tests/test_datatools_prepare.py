from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lightning_ft_datatools
import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.fix import clean_text

from lightning_ft.errors import DataError


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_read_is_in_a_part_or_in_the_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = [{"question": f"What comes after the number {i * 7}?", "answer": f"After it comes {i * 7 + 1}."} for i in range(40)]
    bad = ["{broken", json.dumps(good[0]), json.dumps({"question": "Empty?", "answer": ""})]
    dirty = json.dumps({"question": "Where  is the caf\u00c3\u00a9?", "answer": "Over there, at the corner."})
    Path("raw.jsonl").write_text("\n".join([*map(json.dumps, good), *bad, dirty]) + "\n", encoding="utf-8")
    assert main(["prepare", "raw.jsonl", "--output", "ready", "--split", "0.7,0.2,0.1"]) == 0
    out = capsys.readouterr().out
    parts = {name: read(Path(f"ready/{name}.jsonl")) for name in ("train", "validation", "test")}
    quarantine = read(Path("ready/data.quarantine.jsonl"))
    assert [len(part) for part in parts.values()] == [29, 8, 4]
    assert len(quarantine) == 3
    assert "44 rows read, 1 changed; proof:" in out
    questions = [row["question"] for part in parts.values() for row in part]
    assert sorted(questions) == sorted([*(row["question"] for row in good), "Where is the caf\u00e9?"])
    order = [row["question"] for row in parts["train"]]
    in_file = [*(row["question"] for row in good), "Where is the caf\u00e9?"]
    assert order != [question for question in in_file if question in order], "shuffled"
    assert json.loads(Path("ready/report.json").read_text())["counts"]["unreadable"] == 1
    assert "rows that cannot be read" in Path("ready/report.html").read_text()
    assert {change["change"] for change in read(Path("ready/data.changes.jsonl"))} >= {"removed", "encoding repaired"}
    made = lightning_ft_datatools.prepare("raw.jsonl", "again", shares=(0.7, 0.2, 0.1))
    assert made.rows == {"train": 29, "validation": 8, "test": 4}
    assert read(Path("again/train.jsonl")) == parts["train"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "raw.jsonl"
    file.write_text('{"question": "Empty?", "answer": ""}\n')
    with pytest.raises(DataError, match="left after cleaning"):
        lightning_ft_datatools.prepare(str(file), tmp_path / "ready")


def test_the_python_door(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "Who wrote Hamlet?", "answer": "William Shakespeare did."}) + "\n")
    report = lightning_ft_datatools.check(str(file))
    assert report.is_valid
    assert report.total_examples == 1
    assert report.avg_prompt_length == len("Who wrote Hamlet?")
    assert report.avg_response_length == len("William Shakespeare did.")
    assert report.issues == []
    assert "No issues found." in report.quality_report
    with pytest.raises(AttributeError, match="nothing"):
        lightning_ft_datatools.nothing  # noqa: B018  # asking for it is what fails


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [(f"What comes after the number {i * 7}?", f"After it comes {i * 7 + 1}.") for i in range(60)]
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("raw.csv").write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in pairs), encoding="utf-8")
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "example"})
    assert "{'train': 54, 'validation': 6} 0" in capsys.readouterr().out
    assert len(read(Path("ready/train.jsonl"))) == 54


def test_what_a_line_begins_with_stays() -> None:
    for text in ("for i in range(1, 4):\n  print(i)", "- a\n  - b", "a:\n  b: 1"):
        assert clean_text(f"{text}  \n") == (text, ["white space"])
    assert clean_text("  one   two \n\n\n\n three") == ("one two\n\n three", ["white space"])


def test_questions_about_one_passage_stay(tmp_path: Path) -> None:
    passage = " ".join(f"word{n}" for n in range(150))
    rows = [
        {"question": "When was the bridge built?", "context": passage, "answer": "In the spring of 1872."},
        {"question": "Who was the bridge built by?", "context": passage, "answer": "Maria Keller and her brothers."},
        {"question": "Who was that bridge built by?", "context": passage, "answer": "Maria Keller and her brothers"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = lightning_ft_datatools.check(str(file))
    assert [issue.line for issue in report.issues if issue.kind in ("exact_duplicate", "near_duplicate")] == [3]
