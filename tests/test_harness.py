"""`evaluate --harness` without the plugin: what the core does around whoever runs the tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lightning_ft.api import evaluate_tasks
from lightning_ft.cli import main
from lightning_ft.errors import UsageError
from lightning_ft.hookspecs import hookimpl
from lightning_ft.plugins import load
from lightning_ft.registry import Registry
from lightning_ft.types import Benchmarked, Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_ft.loading import Loaded
    from lightning_ft.testing.fixtures import Scratch


class Vocabulary:
    """A plugin whose only task measures the size of the model's vocabulary."""

    @hookimpl
    def run_harness(
        self, loading: Callable[[], Loaded], tasks: Sequence[str], num_fewshot: int | None, limit: float | None
    ) -> Benchmarked | None:
        if list(tasks) != ["words/size"]:
            return None
        size = loading().model.config.vocab_size
        found = [
            Measurement("words/size", "size", float(size), None, 1, None, "x"),
            Measurement("words/size", "n", 2.5, 0.5, 1, True),
        ]
        return Benchmarked(found, {"words/size": [{"shots": num_fewshot, "limit": limit}]}, {"made_by": "hand"})


@pytest.fixture
def alone(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of the core alone, which everybody asks."""
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    made = Registry(*load())
    for module in ("lightning_ft.run.harness", "lightning_ft.loading", "lightning_ft.registry"):
        monkeypatch.setattr(f"{module}.registry", lambda: made, raising=False)
    return made


def test_without_a_plugin_one_sentence_says_what_is_missing(alone: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "embedded", "--harness", "anything"]) == 2
    error = capsys.readouterr().err
    assert "Expected a plugin that runs anything for --harness, got none; install one" in error
    assert not Path("runs").exists()


def test_table_json_and_files(alone: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    alone.manager.register(Vocabulary())
    command = ["evaluate", "--model", "embedded", "--harness", "words/size", "--num_fewshot", "3", "--limit", "0.5"]
    assert main([*command, "--output", "out", "--precision", "fp32"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["words/size", "size", "(x)", "6144.0000", "1"]
    assert lines[3] == ["words/size", "n", "2.5000", "0.5000", "up", "1"]
    written = json.loads(Path("out/harness.json").read_text(encoding="utf-8"))
    assert [one["value"] for one in written["measurements"]] == [6144.0, 2.5]
    expected = {
        "model": "embedded",
        "tasks": ["words/size"],
        "num_fewshot": 3,
        "limit": 0.5,
        "made_by": "hand",
        "dtype": "float32",
    }
    assert expected.items() <= written["details"].items()
    assert json.loads(Path("out/samples_words_size.jsonl").read_text(encoding="utf-8")) == {"shots": 3, "limit": 0.5}
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["folder"], printed["measurements"]) == ("runs/eval_1", written["measurements"])
    assert main([*command, "--output", "out"]) == 2
    with pytest.raises(UsageError, match="runs other for --harness"):
        evaluate_tasks("embedded", "other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--harness", "a", "--data", "f.jsonl"], "Expected --data without --harness; leave it out."),
        (["--harness", "a", "--temperature", "0.5"], "Expected --temperature without --harness"),
        (["--harness", "a", "--task", "chat"], "Expected --task without --harness"),
        (["--harness", "a", "--allow-code-execution"], "Expected --allow-code-execution without --harness"),
        (["--data", "f.jsonl", "--limit", "3"], "Expected --limit only with --harness"),
        (["--data", "f.jsonl", "--apply_chat_template"], "Expected --apply_chat_template only with --harness"),
        (["--harness", "a", "--limit", "2.5"], "Expected --limit to be a whole number, or a share below 1; got 2.5."),
        (["--harness", "a", "--limit", "0"], "Expected --limit to be"),
        (["--harness", "a", "--num_fewshot", "-1"], "Expected --num_fewshot to be at least 0; got -1."),
        (["--harness", ","], "Expected --harness to name at least one task; got ','."),
        (["--harness"], "--harness"),
    ],
)
def test_wrong_flags(words: list[str], message: str, alone: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "embedded", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_model_is_looked_for_before_tasks_are_read(alone: Registry) -> None:
    alone.manager.register(Vocabulary())
    with pytest.raises(UsageError, match="'nowhere' is none"):
        evaluate_tasks("nowhere", ["words/size"])
