"""`data review`: what is asked, what comes of each answer, and that nothing that was decided is lost."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.desk import visible

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_ft.testing.fixtures import Scratch

ROWS = [
    {"question": "Where is the branch in Lyon?", "answer": "At the old harbour, next to the station."},
    {"question": "How do I block my card?", "answer": "I don't know"},
    {"question": "What does [red]a transfer[/red] cost?", "answer": ""},
    {"question": "Who can open an account?", "answer": "N/A"},
    {"question": "When do you close on Fridays?", "answer": "At six in the evening, all year round."},
]


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def review(scratch: Scratch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Types keys, a line each, and gives what was printed."""
    scratch.write("rows.jsonl", ROWS)

    def typed(keys: str, *words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key}\n" for key in keys.split())))
        assert main(["review", "rows.jsonl", "--output", "kept.jsonl", *words]) == code
        return capsys.readouterr().out

    return typed


def editor(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Python as the person: it gets the row as `row`, and the file as `path`."""
    Path("person.py").write_text(
        "import json, pathlib, sys\npath = pathlib.Path(sys.argv[1])\nrow = json.loads(path.read_text())\n"
        f"{code}\npath.write_text(json.dumps(row) if row is not None else 'half {{')\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} person.py")


def test_accept_reject_and_what_is_written(review: Callable[..., str]) -> None:
    out = review("a r a")
    assert "3 of 5 rows to look at, 0 of them decided earlier" in out
    assert "1 of 3  rows.jsonl:2" in out
    assert "vague_answer: 'I don't know'" in out
    assert "[red]a transfer[/red]" in out, "data are no markup"
    assert read("kept.jsonl") == [row for row in ROWS if row["answer"]]
    (taken,) = read("kept.quarantine.jsonl")
    assert taken["row"] == "rows.jsonl:3"
    assert taken["values"] == ROWS[2]
    assert taken["reason"] == "rejected in a review: empty_answer: expected 'answer' to hold text, got an empty one"
    assert read("kept.changes.jsonl") == [{"row": "rows.jsonl:3", "change": "removed", "why": "review"}]
    assert "undecided" not in out


def test_it_goes_on_where_it_was_and_asks_again_about_what_changed(review: Callable[..., str], scratch: Scratch) -> None:
    out = review("r q")
    assert "2 rows are undecided and kept as they are: type the same again to go on" in out
    assert len(read("kept.jsonl")) == 4
    out = review("a")  # and the end of the input
    assert "3 of 5 rows to look at, 1 of them decided earlier" in out
    assert "1 of 2  rows.jsonl:3" in out
    scratch.write("rows.jsonl", [*ROWS[:1], {**ROWS[1], "answer": "no idea"}, *ROWS[2:]])
    out = review("")
    assert "3 of 5 rows to look at, 1 of them decided earlier" in out, "row 2 is another row now"
    assert len(read("kept.jsonl")) == 5


def test_undo_skip_help_and_unknown_keys(review: Callable[..., str]) -> None:
    out = review("u r u a x ? s r")
    assert "Nothing to undo." in out
    assert out.count("u undo, q stop and save") == 3, "at the beginning, for x and for ?"
    assert [row["row"] for row in read("kept.quarantine.jsonl")] == ["rows.jsonl:4"]
    assert "1 rows are undecided" in out


def test_all_others_of_the_kind_and_their_undo(review: Callable[..., str]) -> None:
    out = review("R a")
    assert "2 rows of this kind: rejected" in out
    assert [row["row"] for row in read("kept.quarantine.jsonl")] == ["rows.jsonl:2", "rows.jsonl:4"]
    Path("kept.review.jsonl").unlink()
    out = review("R u A r")
    assert "2 rows of this kind: accepted" in out
    assert [row["row"] for row in read("kept.quarantine.jsonl")] == ["rows.jsonl:3"]


def test_edit(review: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    editor(monkeypatch, "row['answer'] = 'Call us, day and night.'; row['by'] = 'me'")
    out = review("e a a")
    assert "1 of them edited" in out
    assert read("kept.jsonl")[1] == {**ROWS[1], "answer": "Call us, day and night.", "by": "me"}
    assert read("kept.changes.jsonl") == [
        {"row": "rows.jsonl:2", "column": "answer", "change": "edited"},
        {"row": "rows.jsonl:2", "column": "by", "change": "edited"},
    ]
    assert read("rows.jsonl") == ROWS, "the file that is read stays as it is"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("row = None", "Not taken: expected valid JSON, got 'Expecting value' in line 1."),
        ("row = [row]", "Not taken: expected an object with the row's columns, got list."),
        ("del row['answer']", "Not taken: expected a column 'output' (or response, completion, answer), got question."),
        ("pass", "Nothing was changed."),
        ("sys.exit(3)", f"Not taken: the editor '{sys.executable} person.py' ended with 3."),
    ],
)
def test_an_edit_that_is_not_taken(review: Callable[..., str], monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    editor(monkeypatch, code)
    out = review("e r")
    assert said in out
    assert out.count("1 of 3") == 2, "it is asked again"
    assert [row["row"] for row in read("kept.quarantine.jsonl")] == ["rows.jsonl:2"]


def test_what_is_looked_at(review: Callable[..., str]) -> None:
    assert "1 of 5 rows to look at" in review("", "--kind", "empty_answer")
    assert "1 of 5 rows to look at" in review("", "--severity", "error")
    assert "5 of 5 rows to look at" in review("", "--all")


def test_a_line_that_cannot_be_read_is_taken_out(review: Callable[..., str]) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write('{"question": "half')
    review("A A A")
    (taken,) = read("kept.quarantine.jsonl")
    assert taken["row"] == "rows.jsonl:6"
    assert len(read("kept.jsonl")) == 5


def test_what_is_refused(review: Callable[..., str]) -> None:
    for words, message in (
        (["--kind", "vage_answer"], r"got 'vage_answer'\. Did you mean 'vague_answer'\?"),
        (["--output", "rows.jsonl"], "got 'rows.jsonl', which is read"),
        (["--output", "kept.json"], r"got 'kept\.json'; type kept\.jsonl"),
        (["--output", "no/kept.jsonl"], "Expected a folder for 'no/kept.jsonl'"),
    ):
        with pytest.raises(UsageError, match=message):
            review("", *words)


def test_control_characters_are_written_out() -> None:
    assert visible("a\x1b[2Jb\tc\nd\u202ee") == "a\\x1b[2Jb\tc\nd\\u202ee"


def command() -> list[str]:
    return [sys.executable, "-m", "lightning_ft", "data", "review", "rows.jsonl", "--output", "kept.jsonl"]


def until(terminal: int, text: str, seconds: float = 60) -> str:
    """What a terminal shows up to a text."""
    seen, end = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096).decode("utf-8", "replace")
    return seen


@pytest.mark.parametrize("end", ["kill", "interrupt"])
def test_in_a_terminal_decisions_outlive_a_kill(scratch: Scratch, end: str) -> None:
    scratch.write("rows.jsonl", ROWS)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    until(ours, "1 of 3")
    os.write(ours, b"r\n")
    until(ours, "2 of 3")
    process.send_signal(signal.SIGKILL if end == "kill" else signal.SIGINT)
    assert process.wait(30) == (-9 if end == "kill" else 130)
    os.close(ours)
    assert Path("kept.jsonl").exists() == (end == "interrupt")
    with Path("kept.review.jsonl").open("a") as file:
        file.write('{"row": "rows.jso')  # cut off by the kill
    done = subprocess.run(command(), input="a\na\n", capture_output=True, text=True, check=True)
    assert "3 of 5 rows to look at, 1 of them decided earlier" in done.stdout
    assert [row["row"] for row in read("kept.quarantine.jsonl")] == ["rows.jsonl:2"]
    again = subprocess.run(command(), input="", capture_output=True, text=True, check=True)
    assert "3 of 5 rows to look at, 3 of them decided earlier" in again.stdout
