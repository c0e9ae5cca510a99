"""4- and 8-bit bases on a GPU: the same losses as on a CPU, and resumed bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import stopped_at

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FIT = (
    *("--max_steps", "8", "--save_every", "4", "--eval_every", "4", "--keep_best", "9", "--log_every", "1"),
    *("--batch_size", "8", "--learning_rate", "0.01", "--seed", "3", "--verdict_rows", "0"),
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`lightning-ft fit` of a tiny Llama on sixty rows."""
    folder = tmp_path_factory.mktemp("data")
    model = tiny_backbone_folder(folder / "model")
    lines = [{"instruction": f"Where is order {n}?", "output": f"In city {n % 7}" + "!" * (n % 9)} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fit = [sys.executable, "-m", "lightning_ft", "fit", "--model", str(model), "--data", str(folder / "rows.jsonl")]
    return [*fit, *FIT]


def losses(words: list[str], output: Path, *more: str, hidden: bool = False) -> list[float]:
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if hidden else {})}
    done = subprocess.run([*words, "--output", str(output), *more], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with (output / "metrics.jsonl").open() as lines:
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.parametrize(("quantize", "method"), [("nf4", "lora"), ("fp4", "lora"), ("nf4", "loha"), ("nf4", "lokr")])
def test_the_gpu_trains_what_the_cpu_trains(words: list[str], tmp_path: Path, quantize: str, method: str) -> None:
    flags = ("--quantize", quantize, "--method", method, "--precision", "fp32")
    here = losses(words, tmp_path / "gpu", *flags)
    assert here == pytest.approx(losses(words, tmp_path / "cpu", *flags, hidden=True), abs=2e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ("--quantize", "nf4", "--double_quant", "true"), ("--quantize", "int8"),
        ("--quantize", "nf4", "--method", "loha"), ("--quantize", "nf4", "--method", "lokr"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("optimizer", ["AdamW", "PagedAdamW8bit"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    words: list[str], tmp_path: Path, flags: tuple[str, ...], optimizer: str
) -> None:
    given = (*flags, "--precision", "bf16", "--optimizer", optimizer)
    whole = losses(words, tmp_path / "run", *given)
    other = tmp_path / "copy"
    resume = str(stopped_at(tmp_path / "run", other, 4))
    again = [*words, *given, "--output", str(tmp_path / "run"), "--resume", resume]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mine, theirs = (load_file(f / "final_model" / "adapter_model.safetensors") for f in (tmp_path / "run", other))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert whole[-1] < whole[0]
