"""Mixtures, few-shot prompts and tasks held out, typed as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lightning_ft.testing.models import Family
    from tests.e2e.conftest import Cli, Refused

pytestmark = pytest.mark.usefixtures("clean")
SHORT = ("--max_length", 128, "--batch_size", 8, "--max_steps", 6, "--eval_every", 3, "--verdict_rows", 0, "--method.rank", 2)


@pytest.fixture
def files() -> tuple[str, str]:
    """60 and 12 rows; each file has several values of `task`."""
    for name, count in (("large.jsonl", 60), ("small.jsonl", 12)):
        rows = [{"question": f"{name[0]} {i}?", "answer": f"It is {i}.", "task": f"{name[0]}{i % 3}"} for i in range(count)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "large.jsonl", "small.jsonl"


def lines(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_a_mixture_is_said_counted_and_validated_by_source(
    cli: Cli, models: dict[Family, Path], files: tuple[str, str], refused: Refused
) -> None:
    given = ("fit", "--model", models["llama"], "--data", *files, *SHORT)
    result = cli(*given, "--mix", "{large.jsonl: 1, small.jsonl: 3}", "--output", "mixed")
    assert result.code == 0, result.err
    assert re.search(r"mixture: an epoch has large\.jsonl \d+ of its \d+ rows .* small\.jsonl \d+ of its \d+ rows", result.err)
    mixture = json.loads(Path("mixed/ledger.json").read_text())["mixture"]
    assert mixture["small.jsonl"]["share"] == pytest.approx(0.75, abs=0.02)
    assert "Training rows of an epoch." in Path("mixed/report.html").read_text()
    validated = [line for line in lines("mixed") if "val_loss" in line]
    assert len(validated) == 2
    for line in validated:
        both = [line["val_loss/large.jsonl"], line["val_loss/small.jsonl"]]
        assert 0 < min(both) < line["val_loss"] < max(both)
    refused(
        cli(*given, "--mix", "{large.jsonl: 1, smal.jsonl: 3}"), "got 'smal.jsonl'. Did you mean 'small.jsonl'?", at_once=False
    )
    refused(cli(*given, "--mix_temperature", "0"), "Expected --mix_temperature to be above 0")


def test_a_task_that_is_held_out_is_the_test(cli: Cli, models: dict[Family, Path], files: tuple[str, str]) -> None:
    result = cli("fit", "--model", models["llama"], "--data", files[0], *SHORT, "--holdout_tasks", "l0,l2", "--output", "held")
    assert result.code == 0, result.err
    total = json.loads(Path("held/ledger.json").read_text())["total"]
    assert total["test"] == 40
    assert total["train"] + total["validation"] == 20


def test_few_shot_prompts(cli: Cli, models: dict[Family, Path], files: tuple[str, str], refused: Refused) -> None:
    given = ("fit", "--model", models["llama"], "--data", files[0], *SHORT)
    result = cli(*given, "--task", "instruct", "--task.shots", 2, "--output", "few")
    assert result.code == 0, result.err
    with_shots = json.loads(Path("few/ledger.json").read_text())["total"]
    assert cli(*given, "--task", "instruct", "--output", "zero").code == 0
    without = json.loads(Path("zero/ledger.json").read_text())["total"]
    assert with_shots["supervised"] == without["supervised"], "what is shown has no loss"
    assert with_shots["tokens"] > 2 * without["tokens"]
    task = "{name: instruct, shots: 2, shots_from: large.jsonl}"
    shown = cli("evaluate", "--model", "few", "--data", files[1], "--task", task, "--max_new_tokens", 2)
    assert shown.code == 0, shown.err
    refused(cli(*given, "--task", "instruct", "--task.shots", 90), "for --task.shots 90, got", at_once=False)
