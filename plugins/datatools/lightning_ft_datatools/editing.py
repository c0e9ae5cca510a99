"""A row in the person's editor, as JSON, and back."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.terminal import is_visible
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.formats import read_jsonl
from lightning_ft.data.unfold import examples_of
from lightning_ft.errors import json_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.task import Task
    from lightning_ft.types import Row

_EDITORS = ("nano", "vi")


def as_text(values: Mapping[str, Any]) -> str:
    """A row as indented JSON; what nobody can see is written as an escape."""
    text = json.dumps(dict(values), indent=2, ensure_ascii=False, default=str)
    return "".join(c if is_visible(c) or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"


def values_of(text: str) -> dict[str, Any]:
    """The row that a text in JSON stands for, as strict as the reader of data files.

    Raises:
        ValueError: it stands for none; the message says what was expected and what came.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected valid JSON, got '{error.msg}' in line {error.lineno}") from None
    except RecursionError:
        raise ValueError("expected valid JSON, got one that is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected an object with the row's columns, got {json_name(values)}")
    bad = BadRows("fail")
    # Line ends of valid JSON stand between values only.
    line = re.sub(r"[\r\n]", " ", text).encode()
    rows = list(read_jsonl(io.BytesIO(line), "", bad))
    if bad.problems:
        raise ValueError(bad.problems[0].reason)
    return dict(rows[0].values)


def check_row(task: Task, row: Row, values: Mapping[str, Any]) -> None:
    """Format a row with other values.

    Raises:
        ValueError: the task refuses them.
    """
    examples_of(task, replace(row, values=values))


def edited(text: str) -> str:
    """A text after the person's editor had it.

    Raises:
        ValueError: there is no editor, it ended with an error, or what it left is no text.
        KeyboardInterrupt: Ctrl-C ended the editor.
    """
    named = (os.environ.get(name, "").strip() for name in ("VISUAL", "EDITOR"))
    name = next(filter(None, named), None) or next(filter(shutil.which, _EDITORS), None)
    if name is None:
        raise ValueError("expected an editor in $VISUAL or $EDITOR to edit a row with, got none; set EDITOR=nano, say")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        file.write_text(text, encoding="utf-8")
        try:
            code = _wait_for([*shlex.split(name), str(file)])
        except OSError as error:
            raise ValueError(f"expected the editor '{name}' to start, got: {error.strerror}; set EDITOR") from None
        if code:
            raise ValueError(f"the editor '{name}' ended with {code}")
        try:
            return file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("expected UTF-8, got other bytes from the editor") from None
        except OSError as error:
            raise ValueError(f"expected the editor '{name}' to leave a file, got: {error.strerror}") from None


def _wait_for(command: list[str]) -> int:
    """Run an editor; Ctrl-C is its business as long as it lives on."""
    interrupts: list[int] = []
    # A handler, since the editor would inherit that a signal is ignored.
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        code = subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if code and interrupts:
        raise KeyboardInterrupt
    return code
