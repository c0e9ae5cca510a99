"""The examples of README.md, from top to bottom in one folder, as a reader would type them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft_compare.command import main

from lightning_ft import cli, fit
from lightning_ft.testing.chat_server import ChatServer

if TYPE_CHECKING:
    import pytest

    from lightning_ft.testing.fixtures import Scratch

README = Path(__file__).parents[1] / "README.md"
URL = "http://localhost:8000"
ROWS = [
    {"instruction": f"Where is order {i}?", "output": f"Order {i} is on its way.", "intent": ["track", "ask"][i % 2],
     "split": "validation" if i % 6 == 5 else "train"}
    for i in range(24)
]  # fmt: skip


def verdict(_: str, body: dict[str, Any]) -> str:
    """The first answer is better, by whatever is asked; any text does where the judge is only asked whether it is there."""
    criteria = re.findall(r"^- (\w+): ", body["messages"][-1]["content"], re.MULTILINE)
    return json.dumps(dict.fromkeys(criteria, "A"))


def test_the_examples_run(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(Path("cache").resolve()))
    monkeypatch.setenv("no_proxy", "*")
    data = scratch.write("train.jsonl", ROWS)
    scratch.write("test.jsonl", [{key: row[key] for key in ("instruction", "output", "intent")} for row in ROWS[:12]])
    fit(
        model="embedded", data=data, output="runs/support_1", max_steps=8, epochs=9, batch_size=4, learning_rate=3e-3,
        verdict_rows=0, preflight=False, packing="off", save_every=0, precision="fp32",
    )  # fmt: skip
    for n in (2, 3):
        shutil.copytree("runs/support_1", f"runs/support_{n}")
    text = README.read_text(encoding="utf-8")
    with ChatServer(verdict) as server:
        text = text.replace(URL, f"{server.root}/good")
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in next(block for language, block in blocks if language == "bash").splitlines():
            command, *words = shlex.split(line)[1:]
            with contextlib.redirect_stdout(io.StringIO()) as said:
                short = ["--max_new_tokens", "4"] if "--data" in words else []  # evaluations that exist have their answers
                code = main([*words, *short]) if command == "compare" else cli.main([command, *words])
            assert code == 0, line
            assert ("Report: runs/compare_" if command == "compare" else "Details: runs/support_2/eval_1") in said.getvalue()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(next(block for language, block in blocks if language == "python"), "README.md", "exec"), {})
    assert "B against A: better in loss" in said.getvalue()
    assert "('relevance', 0.5, " in said.getvalue(), "a judge who always prefers the first answer prefers none"
