"""`evaluate` and `score` as a user types them: the same numbers for any batch and number of processes, and what is refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.testing.models import Family
    from tests.e2e.conftest import Cli, Refused

SHORT = ("--max_new_tokens", "5", "--precision", "fp32")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one questions of different lengths, of two tasks: an odd number, which two processes cannot share evenly."""
    file = tmp_path_factory.mktemp("rows") / "test.jsonl"
    made = [
        {
            "instruction": f"Where is {'my very ' * (n % 4)}order {n}?",
            "output": f"In city {n % 7}.",
            "task": ("ask", "tell")[n % 2],
        }
        for n in range(21)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return file


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "results.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def test_two_processes_find_what_one_finds(models: dict[Family, Path], rows: Path, cli: Cli, tmp_path: Path) -> None:
    """Every row once and in order, with the same likelihoods and answers; one process speaks, both leave."""
    assert cli("evaluate", models["llama"], "--data", rows, *SHORT, "--output", tmp_path / "one").code == 0
    command = [sys.executable, "-m", "lightning_ft", "evaluate", models["llama"], "--data", rows, *SHORT]
    done = subprocess.run(
        [str(word) for word in (*command, "--devices", "2", "--output", tmp_path / "two")],
        env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Details: ") == 1
    (one, one_rows), (two, two_rows) = read(tmp_path / "one"), read(tmp_path / "two")
    assert [row["row"] for row in two_rows] == [f"{rows}:{n}" for n in range(1, 22)]
    assert [row["prediction"] for row in two_rows] == [row["prediction"] for row in one_rows]
    assert two["rows"] == one["rows"] == 21 == one["details"]["ledger"]["read"]
    assert (one["details"]["processes"], two["details"]["processes"]) == (1, 2)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert two["groups"].keys() == {"ask", "tell"}
    assert two["details"]["cost"]["likelihood_tokens"] == one["details"]["cost"]["likelihood_tokens"]


def test_perplexity_is_that_of_ten_plain_lines(models: dict[Family, Path], rows: Path, cli: Cli, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = cli(
        "evaluate", models["llama"], "--data", rows, *SHORT, "--metrics", "perplexity", "--output", tmp_path / "e", "--json"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    model: Any = AutoModelForCausalLM.from_pretrained(models["llama"])
    tokenizer: Any = AutoTokenizer.from_pretrained(models["llama"])
    nll = tokens = 0.0
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        end = len(whole) - whole[::-1].index(tokenizer.convert_tokens_to_ids("<|stop|>"))  # what follows it is not learned
        with torch.no_grad():
            logits = model.float()(torch.tensor([whole[:end]])).logits[0, len(asked) - 1 : -1]
        nll += float(F.cross_entropy(logits, torch.tensor(whole[len(asked) : end]), reduction="sum"))
        tokens += end - len(asked)
    assert found["metrics"]["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-6)
    assert found["rows"] == 21


def test_groups_and_spread_are_shown(models: dict[Family, Path], rows: Path, cli: Cli, tmp_path: Path) -> None:
    result = cli("evaluate", models["llama"], "--data", rows, *SHORT, "--metrics", "token_f1", "--output", tmp_path / "e")
    assert result.code == 0, result.err
    shown = result.out.splitlines()
    assert shown[0].split() == ["metric", "value", "std", "min", "max", "rows"]
    assert {line.split()[0] for line in shown if line} >= {"loss", "token_f1", "ask", "tell"}
    found, lines = read(tmp_path / "e")
    by_hand = [row["scores"]["token_f1"] for row in lines]
    assert found["metrics"]["token_f1"] == pytest.approx(sum(by_hand) / 21)
    assert found["spreads"]["token_f1"]["high"] == max(by_hand)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--metrics", "rougeX"), ("rougeX", "rougeL")),
        (("--max_rows", "0"), ("--max_rows", "at least 1")),
        (("--devices", "none"), ("--devices", "none")),
        (("--precision", "int4"), ("--precision", "int4")),
        (("--template", "nowhere"), ("nowhere",)),
        (("--max_length", "100000"), ("Expected --max_length from 1 to 256, the model's positions; got 100000.",)),
    ],
)
def test_wrong_options_are_refused(
    flags: tuple[str, ...],
    parts: tuple[str, ...],
    models: dict[Family, Path],
    rows: Path,
    cli: Cli,
    refused: Refused,
    clean: None,
) -> None:
    refused(cli("evaluate", models["llama"], "--data", rows, *flags), *parts, at_once=False)


def test_a_metric_without_anything_to_read_is_refused(
    models: dict[Family, Path], cli: Cli, refused: Refused, clean: None, tmp_path: Path
) -> None:
    file = tmp_path / "raw.jsonl"
    file.write_text('{"text": "Only text."}\n{"text": "And more of it."}\n', encoding="utf-8")
    result = cli("evaluate", models["llama"], "--data", file, "--metrics", "rougeL", *SHORT)
    refused(result, "rougeL", "answers that the model generated", at_once=False)


# ---- predictions that anybody made --------------------------------------------------------------------------------------


def score(cli: Cli, tmp_path: Path, metrics: str, *rows: dict[str, Any]) -> Any:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return cli("score", "--predictions", file, "--metrics", metrics, "--json")


def test_an_empty_prediction_counts_as_wrong(cli: Cli, tmp_path: Path) -> None:
    rows = ({"prediction": "yes", "reference": "yes"}, {"prediction": "", "reference": "no"})
    assert json.loads(score(cli, tmp_path, "exact_match", *rows).out) == {"rows": 2, "exact_match": 0.5}


def test_a_table_has_two_decimals_and_the_spread(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prediction": "x b", "reference": "x c"}\n{"prediction": "d", "reference": "d"}\n', encoding="utf-8")
    result = cli("score", file, "--metrics", "token_f1")
    assert result.code == 0, result.err
    line = next(line for line in result.out.splitlines() if line.startswith("token_f1"))
    assert line.split() == ["token_f1", "75.00", "%", "25.00", "%", "50.00", "%", "100.00", "%", "2"]
