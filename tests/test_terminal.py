"""What people are shown and type in a terminal, and lines that are noted while they do."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import sys
import termios
import threading
from typing import TYPE_CHECKING

import pytest

from lightning_ft.atomic import append_lines
from lightning_ft.cli.terminal import END, has_keys, read_key, read_line, visible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_control_characters_are_written_out() -> None:
    assert visible("a\x1b[2Jb\tc\nd\u202ee\u3000\x9b\ud800") == "a\\x1b[2Jb\tc\nd\\u202ee\u3000\\x9b\\ud800"


def test_lines_of_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" a b \n\nc"))
    assert not has_keys()
    assert [read_line("> "), read_key("? "), read_line("> "), read_line("> "), read_key("? ")] == ["a b", "", "c", END, END]
    assert capsys.readouterr().out == "> a b\n? \n> c\n> \n? \n", "as a terminal would show it"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert read_line("> ") == "?"


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """A terminal as standard input and output; its other end. Not as a fixture, since pytest sets both anew for the test."""
    ours, theirs = pty.openpty()
    with (
        os.fdopen(theirs, "r", encoding="utf-8") as stdin, os.fdopen(os.dup(theirs), "w", encoding="utf-8") as stdout,
        pytest.MonkeyPatch.context() as patch,
    ):  # fmt: skip
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        assert has_keys()
        yield ours
    os.close(ours)


@pytest.mark.parametrize(
    ("typed", "key"),
    [(b"l", "l"), (b"\n", ""), (b"\x1b[D", "\x1b[D"), (b"\x1b", "\x1b"), ("\u00fc".encode(), "\u00fc"), (b"\x04", END)],
)
def test_a_key_needs_no_enter(typed: bytes, key: str) -> None:
    with terminal() as typist:
        modes = termios.tcgetattr(sys.stdin)
        threading.Timer(0.05, os.write, (typist, typed)).start()
        found = read_key("> ")
        assert termios.tcgetattr(sys.stdin) == modes, "as it was before"
        assert os.read(typist, 2) == b"> "
    assert found == key


def test_keys_typed_ahead_stay() -> None:
    with terminal() as typist:
        threading.Timer(0.05, os.write, (typist, b"lr")).start()
        found = [read_key("> "), read_key("> ")]
    assert found == ["l", "r"]


def test_lines_begin_on_a_line_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_lines(path, "one\n")
    append_lines(path, "two\nthree\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(b"one\ncut o")
    append_lines(path, "two\n")
    assert path.read_bytes() == b"one\ncut o\ntwo\n"
    with pytest.raises(OSError, match="Is a directory"):
        append_lines(tmp_path, "x\n")
