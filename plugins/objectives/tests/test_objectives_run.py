"""Whole runs with each objective, by name: what is logged, that a step may be cut as one likes, and the preset."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lightning_ft
from lightning_ft.cli import main
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_backbone_folder

pytestmark = pytest.mark.usefixtures("module_cache")
CHOICES: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo"},
    "with likelihood": {"name": "dpo", "sft_weight": 0.5},
    "simpo": {"name": "simpo"},
    "orpo": {"name": "orpo"},
}
OPTIONS: dict[str, Any] = {
    "method": "full", "max_steps": 6, "eval_every": 3, "precision": "fp32", "verdict_rows": 0, "log_every": 1, "warmup": 0,
    "learning_rate": 1e-3, "batch_tokens": 2048,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    lines = [
        {"prompt": f"Count to {n}.", "chosen": " ".join(map(str, range(n % 9 + 1))), "rejected": "no " * (n * 7 % 11 + 1)}
        for n in range(48)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone_folder(tmp_path_factory.mktemp("model"), "llama")


def lines_of(run: Path, key: str) -> list[dict[str, float]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if key in line]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_learns_and_says_how_far_the_answers_are_apart(choice: str, model: Path, rows: Path, tmp_path: Path) -> None:
    def fit(folder: str, **cut: Any) -> Path:
        given = {**OPTIONS, "objective": CHOICES[choice], **cut}
        return lightning_ft.fit(model=str(model), data=rows, output=str(tmp_path / folder), **given).folder

    whole, cut = fit("whole", batch_size=8), fit("cut", batch_size=2, accumulate=4)
    logs = registry().objectives[CHOICES[choice]["name"]].cls.measures
    steps, again = lines_of(whole, "loss"), lines_of(cut, "loss")
    assert len(steps) == len(again) == 6
    for one, other in zip(steps, again, strict=True):
        for name in ("loss", *logs):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4)
    if choice == "dpo":
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    first, last = lines_of(whole, "val_loss")
    assert last["val_loss"] < first["val_loss"] < steps[0]["loss"]
    margin = "val_log_odds_ratio" if choice == "orpo" else "val_reward_margin"
    assert last[margin] > first[margin]
    assert {f"val_{name}" for name in logs} < set(last)
    if "chosen_reward" in logs:
        assert last["val_chosen_reward"] - last["val_rejected_reward"] == pytest.approx(last[margin], abs=1e-5)


def test_the_preset_trains(model: Path, rows: Path, tmp_path: Path) -> None:
    words = ["--config", "dpo", "--verdict_rows", "0", "--max_steps", "1", "--output", str(tmp_path / "run")]
    assert main(["fit", "--model", str(model), "--data", str(rows), *words]) == 0
    (first,) = lines_of(tmp_path / "run", "loss")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "dropout: 0" in config


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_are_one(strategy: str, model: Path, rows: Path, tmp_path: Path) -> None:
    """6 pairs a step, an odd number in the last: the processes have different numbers of them."""
    common = OPTIONS | {"objective": "dpo", "preflight": False, "packing": "off"}
    lightning_ft.fit(model=str(model), data=rows, output=str(tmp_path / "one"), batch_size=6, **common)
    words = ["--model", model, "--data", rows, "--output", tmp_path / "two", "--batch_size", 3]
    for name, value in common.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else value]
    fit = [sys.executable, "-m", "lightning_ft", "fit", "--devices", "2", "--strategy", strategy, *map(str, words)]
    done = subprocess.run(fit, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for key in ("loss", "val_loss"):
        one, two = (lines_of(tmp_path / name, key) for name in ("one", "two"))
        assert len(one) == len(two) > 1
        for mine, theirs in zip(one, two, strict=True):
            for name in mine.keys() & {
                "loss",
                "val_loss",
                "reward_margin",
                "reward_accuracy",
                "val_reward_margin",
                "val_reward_accuracy",
            }:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name
    whole, parts = (load_file(tmp_path / name / "final_model" / "model.safetensors") for name in ("one", "two"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-5)
    first, second = (load_file(tmp_path / name / "reference.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("method", [*registry().methods])
def test_every_method_begins_at_its_own_reference(method: str, model: Path, rows: Path, tmp_path: Path) -> None:
    """Whatever a method adds at its start is in both: the first loss is ln 2, and the second step is another one."""
    given = OPTIONS | {"method": method, "max_steps": 2, "learning_rate": 1e-2, "preflight": False, "dropout": 0.0}
    folder = tiny_backbone_folder(tmp_path / "gpt2", "gpt2") if method == "bitfit" else model  # the other has no biases
    lightning_ft.fit(model=str(folder), data=rows, output=str(tmp_path / "run"), objective="dpo", batch_size=8, **given)
    first, second = lines_of(tmp_path / "run", "loss")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["grad_norm"] > 0
    assert second["reward_margin"] != first["reward_margin"]


@pytest.mark.parametrize(("objective", "packing"), [("dpo", "auto"), ("simpo", "off")])
def test_pairs_are_planned(objective: str, packing: str, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "embedded", "--data", str(rows), "--objective", objective, "--packing", packing]
    assert main(words) == 0
    assert f"--packing {packing} --objective {objective} --method lora`" in capsys.readouterr().out


def test_predict_answers_the_prompts_of_pairs(model: Path, rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lightning_ft.fit(model=str(model), data=rows, output=str(run), objective="dpo", **(OPTIONS | {"max_steps": 1}))
    assert main(["predict", str(run), "--max_new_tokens", "3", "--output", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert lines
    assert all(line["prediction"] is not None and "Count to" in line["prompt"] for line in lines)


def test_the_rate_is_a_tenth_of_the_methods_where_none_is_given(model: Path, rows: Path, tmp_path: Path) -> None:
    given = {name: value for name, value in OPTIONS.items() if name != "learning_rate"}
    options = given | {"max_steps": 1, "lr_scheduler": "constant", "preflight": False}
    lightning_ft.fit(model=str(model), data=rows, output=str(tmp_path / "run"), objective="dpo", **options)
    (line,) = lines_of(tmp_path / "run", "loss")
    assert line["learning_rate"] == pytest.approx(2e-6), "2e-5 is usual where all weights train"
