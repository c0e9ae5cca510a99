"""`data review`: what is asked, what comes of each answer, and that nothing that was decided is lost."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.desk import KEYS
from lightning_ft_datatools.editing import as_text, edited, values_of
from lightning_ft_datatools.reviewing import Decision, Journal

from lightning_ft.errors import UsageError
from lightning_ft.types import Row

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
BROKEN = '{"question": "half'
EMPTY = "empty_answer: expected 'answer' to hold text, got an empty one"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def taken() -> list[str]:
    return [row["row"] for row in read("kept.quarantine.jsonl")]


@pytest.fixture
def review(scratch: Scratch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Types keys, a line each (`_`: Enter alone), and gives what was printed."""
    scratch.write("rows.jsonl", ROWS)

    def typed(keys: str, *words: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key.strip('_')}\n" for key in keys.split())))
        assert main(["review", "rows.jsonl", "--output", "kept.jsonl", *words]) == 0
        return capsys.readouterr().out

    return typed


def editor(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Python as the person: it gets what the file holds as `text` and as `row`, and leaves what `row` or `text` is then."""
    Path("person.py").write_text(
        "import json, pathlib, sys\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n"
        f"row = None if 'half' in text else json.loads(text)\n{code}\n"
        "path.write_text(text if row is None else json.dumps(row))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} person.py")


def test_accept_reject_and_what_is_written(review: Callable[..., str]) -> None:
    out = review("a r a")
    assert "3 of 5 rows to look at, 0 of them decided earlier" in out
    assert "1 of 3  rows.jsonl:2" in out
    assert "vague_answer: 'I don't know'" in out
    assert "  question: What does [red]a transfer[/red] cost?\n" in out, "data are no markup"
    assert read("kept.jsonl") == [row for row in ROWS if row["answer"]]
    assert read("kept.quarantine.jsonl") == [
        {"row": "rows.jsonl:3", "reason": f"rejected in a review: {EMPTY}", "values": ROWS[2]}
    ]
    assert read("kept.changes.jsonl") == [{"row": "rows.jsonl:3", "change": "removed", "why": "review"}]
    assert "5 rows in = 4 kept + 1 in the quarantine (0 of them unreadable); 0 edited, 0 undecided\n" in out
    assert "written: kept.jsonl, kept.quarantine.jsonl, kept.changes.jsonl" in out
    assert "type the same again" not in out


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


def test_undo_skip_help_and_what_is_no_key(review: Callable[..., str]) -> None:
    out = review("u r u a x ? Reject s r")
    assert "Nothing to undo." in out
    assert out.count(KEYS) == 4, "at the beginning, for x, for ? and for a word, which is no R"
    assert taken() == ["rows.jsonl:4"]
    assert "skipped: rows.jsonl:3\n1 rows are undecided" in out
    out = review("_ u r")
    assert "skipped" not in out, "the skip was taken back"
    assert taken() == ["rows.jsonl:3", "rows.jsonl:4"]


def test_the_last_answer_can_be_taken_back_too(review: Callable[..., str]) -> None:
    out = review("r a r u a _ r")
    assert out.count("That was the last one") == 2
    assert taken() == ["rows.jsonl:2"]
    assert "That was the last one" not in review("u"), "nothing was answered"


def test_all_others_of_the_kind_and_their_undo(review: Callable[..., str]) -> None:
    out = review("R a")
    assert "2 rows of this kind: rejected" in out
    assert taken() == ["rows.jsonl:2", "rows.jsonl:4"]
    Path("kept.review.jsonl").unlink()
    out = review("R u A r")
    assert "2 rows of this kind: accepted" in out
    assert taken() == ["rows.jsonl:3"]
    Path("kept.review.jsonl").unlink()
    assert "2 undecided" in review("R u", "--kind", "vague_answer"), "also where nothing is left to ask"
    assert taken() == []


def test_decisions_count_also_where_other_kinds_are_looked_at(review: Callable[..., str]) -> None:
    review("R", "--kind", "vague_answer")
    out = review("r", "--kind", "empty_answer")
    assert "1 of 5 rows to look at, 0 of them decided earlier" in out
    assert taken() == ["rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4"]


def test_edit(review: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    editor(monkeypatch, "row['answer'] = 'Call us, day and night.'; row['by'] = 'me'")
    out = review("e a a")
    assert "1 edited, 0 undecided" in out
    assert read("kept.jsonl")[1] == {**ROWS[1], "answer": "Call us, day and night.", "by": "me"}
    assert read("kept.changes.jsonl") == [
        {"row": "rows.jsonl:2", "column": "answer", "change": "edited"},
        {"row": "rows.jsonl:2", "column": "by", "change": "edited"},
    ]
    assert read("rows.jsonl") == ROWS, "the file that is read stays as it is"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("row, text = None, 'half {'", "Not taken: expected valid JSON, got 'Expecting value' in line 1."),
        ("row = [row]", "Not taken: expected an object with the row's columns, got a list."),
        ("del row['answer']", "Not taken: expected a column 'output' (or response, completion, answer), got question."),
        ("row = json.loads(text)", "Nothing was changed."),
        ("sys.exit(3)", f"Not taken: the editor '{sys.executable} person.py' ended with 3."),
        ("path.unlink(); sys.exit()", f"Not taken: expected the editor '{sys.executable} person.py' to leave a file"),
    ],
)
def test_an_edit_that_is_not_taken(review: Callable[..., str], monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    editor(monkeypatch, code)
    out = review("e r")
    assert said in out
    assert out.count("[a]ccept") == 3, "it is asked again, then about the next row"
    assert taken() == ["rows.jsonl:2"]


def test_an_edited_row_is_read_as_strictly_as_a_file() -> None:
    for text, said in (
        ('{"a": 1, "a": 2}', "each key once, got 'a' twice"), ('{"a": NaN}', "got NaN"), ('{"a": "\\ud800"}', "U+D800"),
        ('{"a": "two\nlines"}', "Invalid control character at' in line 1"), ("[" * 100_000, "nested too deeply"),
        ("3", "a number"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^expected ") as caught:
            values_of(text)
        assert said in str(caught.value)
    row = {"a": "\x1b[2J \u202e\x00 caf\u00e9 \u3000 \U000e0001", "b": [True, None, {"c": 1.5}]}
    assert values_of(as_text({**row, "a": "\x1b"})) == {**row, "a": "\x1b"}
    assert "caf\u00e9 \u3000" in as_text(row)
    assert not any(hidden in as_text(row) for hidden in "\x1b\u202e\x00\U000e0001")


def test_an_editor_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", " ")
    monkeypatch.setenv("EDITOR", "no-such-editor --wait")
    with pytest.raises(ValueError, match="expected the editor 'no-such-editor --wait' to start"):
        edited("{}")
    monkeypatch.delenv("EDITOR")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"expected an editor in \$VISUAL or \$EDITOR"):
        edited("{}")


def test_ctrl_c_is_the_editors_unless_it_ends_by_it(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt = "import os, signal; os.kill(os.getppid(), signal.SIGINT)"
    editor(monkeypatch, f"{interrupt}; row['a'] = 2")
    assert json.loads(edited('{"a": 1}')) == {"a": 2}
    editor(monkeypatch, f"{interrupt}; sys.exit(1)")
    with pytest.raises(KeyboardInterrupt):
        edited("{}")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_looked_at_and_beside_what(review: Callable[..., str], scratch: Scratch) -> None:
    assert "1 of 5 rows to look at" in review("", "--kind", "empty_answer")
    assert "3 of 5 rows to look at" in review("", "--kind", "empty_answer", "--kind", "vague_answer")
    assert "1 of 5 rows to look at" in review("", "--severity", "error")
    assert "5 of 5 rows to look at" in review("", "--all")
    scratch.write("rows.jsonl", [*ROWS, {**ROWS[0], "answer": "In the new town hall."}, ROWS[4]])
    scratch.write("held.jsonl", [{"question": "who can open an account", "answer": "Everybody."}])
    review("r q", "--all")
    kinds = (word for kind in ("conflict", "exact_duplicate", "benchmark_leak") for word in ("--kind", kind))
    out = review("r r r", *kinds, "--against", "held.jsonl")
    assert "3 of 7 rows to look at" in out
    assert "benchmark_leak: the same prompt as held.jsonl:1\nvague_answer: 'N/A'" in out, "all that was found"
    for place, question in (
        ("rows.jsonl:1 (rejected)", ROWS[0]["question"]), ("rows.jsonl:5", ROWS[4]["question"]),
        ("held.jsonl:1", "who can open an account"),
    ):  # fmt: skip
        assert f"beside it {place}\n  question: {question}\n" in out
    assert read("kept.quarantine.jsonl")[3]["reason"] == "rejected in a review: exact_duplicate: the same as rows.jsonl:5"


def test_a_line_that_cannot_be_read_is_taken_out(review: Callable[..., str]) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write(BROKEN)
    out = review("A A A")
    assert taken() == ["rows.jsonl:6"]
    assert len(read("kept.jsonl")) == 5
    assert "6 rows in = 5 kept + 1 in the quarantine (1 of them unreadable)" in out


def test_what_is_refused(scratch: Scratch) -> None:
    scratch.write("rows.jsonl", ROWS)
    Path("data/deep").mkdir(parents=True)
    for name in ("kept.quarantine.jsonl", "data/a.jsonl", "held.jsonl"):
        scratch.write(name, ROWS)
    before = {path: path.read_bytes() for path in Path().rglob("*.jsonl")}
    for words, message in (
        (["--kind", "vage_answer"], r"got 'vage_answer'\. Did you mean 'vague_answer'\?"),
        (["--severity", "warn"], r"got 'warn'\. Did you mean 'warning'\?"),
        (["--output", "rows.jsonl"], "got 'rows.jsonl', which is read"),
        (["--output", "data/../rows.jsonl"], "which is read"),
        (["--against", "held.jsonl", "--output", "held.jsonl"], "which is read"),
        (["kept.quarantine.jsonl"], r"beside which 'kept\.quarantine\.jsonl' is read"),
        (["data", "--output", "data/deep/kept.jsonl"], "got 'data/deep/kept.jsonl' within 'data'"),
        (["data/*.jsonl", "--output", "data/kept.jsonl"], r"got 'data/kept\.jsonl' within 'data/\*\.jsonl'"),
        (["--output", "kept.json"], r"got 'kept\.json'; type kept\.jsonl"),
        (["--output", "no/kept.jsonl"], "Expected a folder for 'no/kept.jsonl'"),
    ):
        with pytest.raises(UsageError, match=message):
            main(["review", "rows.jsonl", *words, *([] if "--output" in words else ["--output", "kept.jsonl"])])
    assert {path: path.read_bytes() for path in Path().rglob("*.jsonl")} == before


def test_a_journal_takes_nothing_that_it_has_not_written(scratch: Scratch) -> None:
    path, row = Path("kept.review.jsonl"), Row(ROWS[0], "rows.jsonl", 1)
    Journal(path).decide([row], Decision("reject"))
    key = {name: read(str(path))[0][name] for name in ("row", "digest")}
    foreign = [{**key, "action": "drop"}, {**key, "action": "edit"}, {"row": [], "digest": 1}, "[]", "\x00", key, '{"row']
    scratch.write(str(path), foreign)
    path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\xff")
    journal = Journal(path)
    assert journal.of(row) is None
    journal.decide([row], Decision("edit", {"question": 1, "answer": True}))
    assert Journal(path).of(row) == Decision("edit", {"question": 1, "answer": True}), "behind a line that was cut off"
    assert Journal(path).of(Row({**ROWS[0], "answer": 1}, "rows.jsonl", 1)) is None
    assert Journal(path).of(Row(ROWS[0], "rows.jsonl", 2)) is None
    journal.undo([row])
    assert Journal(path).of(row) is None
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"Could not write 'kept\.review\.jsonl'"):
        journal.decide([row], Decision("accept"))


# The command itself as a process: in a terminal of its own, killed in the middle, and over a pipe.

COMMAND = [sys.executable, "-m", "lightning_ft", "data", "review", "rows.jsonl", "--output", "kept.jsonl"]
IN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A terminal in which the review runs; Ctrl-C typed there is a SIGINT."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        words = [sys.executable, "-c", IN_TERMINAL, *COMMAND]
        self.process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)

    def until(self, text: str, seconds: float = 120) -> str:
        """What it shows up to a text, that included."""
        seen, end = "", time.monotonic() + seconds
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([self._ours], [], [], 1)[0]:
                seen += os.read(self._ours, 1).decode("latin-1")
        return seen

    def type(self, keys: str) -> None:
        """Type keys when it waits for them: CPython sees a SIGINT between a prompt and the read only with the next key."""
        state = Path(f"/proc/{self.process.pid}/stat")
        end = time.monotonic() + 120
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < end
            time.sleep(0.01)
        os.write(self._ours, keys.encode())

    def ended(self) -> int:
        """Its exit code."""
        try:
            while select.select([self._ours], [], [], 60)[0] and os.read(self._ours, 4096):
                pass
        except OSError:  # Linux's way to say that nobody is there any more
            pass
        os.close(self._ours)
        return self.process.wait(60)


HOSTILE = {
    "question": "What is \x1b[2J[bold]that[/bold] \x9b1m\u202e?",
    "answer": "[link=x]A control[/link] :smile: character.",
}
EDITED = {"question": "How do I block my card?", "answer": "Call us [red]day[/red] and night."}


def test_in_a_terminal_with_an_editor_to_ctrl_c(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS, HOSTILE]
    scratch.write("rows.jsonl", [*rows, BROKEN])
    first = "row, text = (None, 'half {') if row else ({'question': 'How do I block my card?', 'answer': '...'}, text)"
    editor(monkeypatch, f"{first}\nif row: row['answer'] = {EDITED['answer']!r}")
    terminal = Terminal()
    seen = terminal.until("1 of 4  rows.jsonl:2")
    assert "4 of 6 rows to look at" in seen
    terminal.until("[?] > ")
    terminal.type("e\n")
    assert "Not taken: expected valid JSON" in terminal.until("[?] > ")
    terminal.type("e\n")  # goes on from what was not taken
    terminal.until("2 of 4  rows.jsonl:3")
    terminal.until("[?] > ")
    terminal.type("s\n")
    terminal.until("3 of 4  rows.jsonl:4")
    terminal.until("[?] > ")
    terminal.type("R\n")
    assert "1 rows of this kind: rejected" in terminal.until("4 of 4  rows.jsonl:6")
    shown = terminal.until("[?] > ")
    for text in ("What is \\x1b[2J[bold]that[/bold] \\x9b1m\\u202e?", "[link=x]A control[/link] :smile: character."):
        assert text in shown
    assert "\x1b[2J" not in shown
    terminal.type("\x03")
    seen = terminal.until("to go on")
    assert terminal.ended() == 130
    assert "7 rows in = 5 kept + 2 in the quarantine (1 of them unreadable); 1 edited, 2 undecided" in seen
    assert "skipped: rows.jsonl:3" in seen
    assert read("kept.jsonl") == [rows[0], EDITED, rows[2], rows[4], HOSTILE]
    assert read("kept.quarantine.jsonl") == [
        {"row": "rows.jsonl:4", "reason": "rejected in a review: vague_answer: 'N/A'", "values": ROWS[3]},
        {
            "row": "rows.jsonl:7",
            "reason": 'unreadable: expected valid JSON, got "Unterminated string starting at" at column 14',
            "raw": '{"question": "half',
        },
    ]
    assert read("kept.changes.jsonl") == [
        {"row": "rows.jsonl:2", "column": "answer", "change": "edited"},
        {"row": "rows.jsonl:4", "change": "removed", "why": "review"},
        {"row": "rows.jsonl:7", "change": "removed", "why": "unreadable"},
    ]


def test_decisions_outlive_a_kill_and_the_rest_comes_over_a_pipe(scratch: Scratch) -> None:
    scratch.write("rows.jsonl", ROWS)
    terminal = Terminal()
    terminal.until("1 of 3")
    terminal.until("[?] > ")
    terminal.type("r\n")
    terminal.until("2 of 3")
    terminal.process.send_signal(signal.SIGKILL)
    assert terminal.ended() == -signal.SIGKILL
    assert sorted(path.name for path in Path().iterdir()) == ["kept.review.jsonl", "rows.jsonl"]
    with Path("kept.review.jsonl").open("a") as file:
        file.write('{"row": "rows.jso')  # a decision that the kill cut off
    done = subprocess.run(COMMAND, input="r\nu\nA\nr\n", capture_output=True, text=True, check=True)
    assert "3 of 5 rows to look at, 1 of them decided earlier" in done.stdout
    assert "5 rows in = 3 kept + 2 in the quarantine (0 of them unreadable); 0 edited, 0 undecided" in done.stdout
    assert Path("kept.jsonl").read_text() == "".join(json.dumps(ROWS[i]) + "\n" for i in (0, 2, 4))
    assert taken() == ["rows.jsonl:2", "rows.jsonl:4"]
    assert [row["row"] for row in read("kept.changes.jsonl")] == ["rows.jsonl:2", "rows.jsonl:4"]
