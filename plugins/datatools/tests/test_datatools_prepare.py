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


def test_files_that_are_named_after_splits_keep_their_rows_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was test before is no training row after, in whatever file it comes to stand."""
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    rows = [{"question": f"What comes after the number {i * 7}?", "answer": f"It is {i * 7 + 1}, I say."} for i in range(40)]
    Path("d/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    Path("d/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[30:]))
    tests = {row["question"] for row in rows[30:]}
    assert main(["prepare", "d", "--output", "ready"]) == 0
    assert {row["question"] for row in read(Path("ready/test.jsonl"))} == tests
    assert main(["split", "d", "--output", "parts"]) == 0
    assert {row["question"] for row in read(Path("parts/test.jsonl"))} == tests
    assert main(["check", "d", "--fix", "clean.jsonl"]) == 0
    assert main(["convert", "d", "--to", "messages", "--output", "chat.jsonl"]) == 0
    for name in ("clean.jsonl", "chat.jsonl"):
        assert sum(row["split"] == "test" for row in read(Path(name))) == 10


def test_code_keeps_every_blank() -> None:
    for text in ("s = 'a  b'\nassert len(s) == 4", "  return  x\n  # end"):
        assert clean_text(text, code=True) == (text, [])
    assert clean_text("  x = 1\n  y = 2\n")[0] == "  x = 1\n  y = 2", "what all lines begin with"
    assert clean_text("  one  line ")[0] == "one line"


def test_columns_of_code_keep_every_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"text": "Join  two words.", "code": "print('a  b')", "test_list": ["assert f('a      b') == 'a b'"]}
    Path("code.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["check", "code.jsonl", "--fix", "clean.jsonl", "--task", "instruct", "--columns.answer", "code"]) == 0
    (kept,) = read(Path("clean.jsonl"))
    assert (kept["text"], kept["answer"], kept["test_list"]) == ("Join two words.", row["code"], row["test_list"])


def test_of_a_row_that_goes_the_copy_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = "Log in with password={} and then run the script that stands in the folder of the project, as always."
    rows = [
        {"question": "How do we deploy it?", "answer": answer.format("Sommer2024xQ!7")},
        {"question": "How do we deploy it now?", "answer": answer.format("the one you know")},
        {"question": "How do we deploy it, then?", "answer": answer.format("the one you know")},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check", "rows.jsonl", "--fix", "clean.jsonl"]) == 0
    assert [row["question"] for row in read(Path("clean.jsonl"))] == [rows[1]["question"]]


def test_numbers_that_json_has_no_word_for_are_null(tmp_path: Path) -> None:
    from lightning_ft_datatools.output import write_rows

    write_rows(tmp_path / "rows.jsonl", [{"text": "a", "score": float("nan"), "more": [float("inf"), 1.5]}])
    assert (tmp_path / "rows.jsonl").read_text() == '{"text": "a", "score": null, "more": [null, 1.5]}\n'


@pytest.mark.parametrize("said", [True, False])
def test_only_splits_that_change_are_changes(said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (("train", "one two three"), ("test", "four five six")):
        rows = [{"question": f"Is {word} a number?", "answer": f"Yes, {word} is.", "split": name} for word in words.split()]
        shown = rows if said else [{key: value for key, value in row.items() if key != "split"} for row in rows]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    assert main(["check", "train.jsonl", "test.jsonl", "--fix", "clean.jsonl"]) == 0
    assert [row["split"] for row in read(Path("clean.jsonl"))] == ["train"] * 3 + ["test"] * 3
    changes = [row for path in Path().glob("*changes*") for row in read(path)]
    assert len(changes) == (0 if said else 6)
