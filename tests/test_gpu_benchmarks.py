"""The GPU suites as far as a CPU goes: rows of the promised tokens, the clock's arithmetic, contestants on a tiny shape."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks import report
from benchmarks.baselines.gpu_clock import PEAK
from benchmarks.generated import build
from benchmarks.run import HERE, Bench, Suite, file_name, main, ratios, summarise
from benchmarks.setting import IGNORE_INDEX, Setting, encode

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48,
    "tie_word_embeddings": False,
}  # fmt: skip
PRODUCTS = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48) + 512 * 32
"""Of that shape and a vocabulary of 512: two layers of queries and outputs, keys and values, a feed-forward; and the head."""
OPTIONS: dict[str, Any] = {
    "build": "benchmarks.generated", "vocab_size": 512, "shape": SHAPE, "train_rows": 8, "row_tokens": 64, "supervised": 0.25,
    "batch_tokens": 128, "steps": 4, "warmup_steps": 2, "learning_rate": 2e-4, "rank": 4, "alpha": 8, "seed": 0,
}  # fmt: skip
NOT_NEEDED = ["jsonargparse", "datasets", "bitsandbytes", "trl", "liger_kernel"]
"""What a machine with a GPU may lack; to Python they are not there in the process that trains."""
gpu_here = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which the suite would run")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return build(OPTIONS, None, tmp_path_factory.mktemp("setting"))


def python(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LIGHTNING_FT_CACHE": str(tmp_path / "cache")}
    return subprocess.run(
        [sys.executable, *words], cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_generated_rows_have_the_promised_tokens(setting: Setting) -> None:
    from transformers import AutoTokenizer

    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.render import Template
    from lightning_ft.types import Conversation, Message

    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    assert len(tokenizer) == 512
    rows = setting.rows("train")
    theirs = [encode(tokenizer, messages, 10**9) for messages in rows]
    assert [len(row["input_ids"]) for row in theirs] == [64] * 8
    assert all(tokenizer.unk_token_id not in row["input_ids"] for row in theirs)
    assert [sum(label != IGNORE_INDEX for label in row["labels"]) for row in theirs] == [16] * 8
    assert (setting.options["train_tokens"], setting.options["train_supervised_tokens"]) == (8 * 64, 8 * 16)
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 64)
    examples = [Conversation(tuple(Message(m["role"], m["content"]) for m in messages)) for messages in rows]
    ours = encoder.encode(examples, [str(i) for i in range(len(rows))])
    assert [{"input_ids": row.input_ids, "labels": row.labels} for row in ours] == theirs


def test_generated_rows_fill_a_range(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    found = build({**OPTIONS, "row_tokens": [30, 50], "train_rows": 200}, None, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(found.model)
    lengths = [len(encode(tokenizer, messages, 10**9)["input_ids"]) for messages in found.rows("train")]
    assert set(lengths) == set(range(30, 51))
    assert found.options["train_tokens"] == sum(lengths)


def test_rows_without_room_for_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave a word to question and answer, got 7 tokens"):
        build({**OPTIONS, "row_tokens": 7}, None, tmp_path)


def test_parameters_of_products_leave_the_embedding_out(setting: Setting, tmp_path: Path) -> None:
    assert setting.options["product_parameters"] == PRODUCTS
    tied = build({**OPTIONS, "shape": {**SHAPE, "tie_word_embeddings": True}}, None, tmp_path)
    assert tied.options["product_parameters"] == PRODUCTS
    assert setting.options["parameters"] - tied.options["parameters"] == 512 * 32


def test_generated_setting_needs_no_data_and_keeps_its_model(tmp_path: Path) -> None:
    def built(options: dict[str, Any]) -> tuple[Any, int]:
        facts = Bench(Suite("s", "t", 1, {}, [], options), {"main": sys.executable}, tmp_path, None, 1, 60).build_setting({})
        return facts, (tmp_path / "setting" / "model" / "model.safetensors").stat().st_mtime_ns

    first, written = built(OPTIONS)
    assert first["train_tokens"] == 8 * 64
    again, kept = built({**OPTIONS, "train_rows": 4})
    assert again["train_tokens"] == 4 * 64
    assert again["product_parameters"] == PRODUCTS
    assert kept == written
    assert built({**OPTIONS, "seed": 1})[1] != written
    with pytest.raises(ValueError, match="--data FOLDER"):
        built({**OPTIONS, "build": "benchmarks.setting"})


def test_only_a_gpu_suite_keeps_the_path_to_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the peers have an interpreter of their own, whose packages must not be hidden."""
    monkeypatch.setenv("PYTHONPATH", "beside")
    for needs, path in (("gpu", "beside"), (None, None)):
        suite = Suite("s", "t", 1, {}, [], None, needs)
        assert Bench(suite, {}, tmp_path, None, 1, 60).environment(1).get("PYTHONPATH") == path


@gpu_here
def test_gpu_suite_is_skipped_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu_lora_8b", "--output", str(tmp_path / "result.json"), "--keep", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out == "skipped: gpu_lora_8b needs an NVIDIA GPU, none is here\n"
    assert not list(tmp_path.iterdir())


def test_one_contestant_that_fails_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import json, sys; json.dump({{'n': {round}, 'steps_ms': [1.0, 2.0]}}, open(sys.argv[1], 'w'))"
    good = {"command": ["python", "-c", code, "{out}/measure.json"]}
    bad = {"command": ["python", "-c", "print('no room'); raise SystemExit({round} - 1)"]}
    targets = [{"metric": "n", "of": "good", "over": "bad", "at_least": 1}]
    suite = Suite("s", "t", 3, {"bad": bad, "good": good}, targets)
    monkeypatch.setattr(Suite, "load", lambda _: suite)
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setattr("benchmarks.run.sys.executable", str(tmp_path / "python"))
    assert main(["s", "--output", str(tmp_path / "result.json")]) == 1
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(found["failed"]) == ["bad"]
    assert "bad ended with 1 in round 2" in found["failed"]["bad"]
    assert "no room" in found["failed"]["bad"]
    assert [(entry["round"], entry["contestant"]) for entry in found["rounds"]] == [
        (1, "bad"), (1, "good"), (2, "good"), (3, "good"),
    ]  # fmt: skip
    assert found["rounds"][1]["steps_ms"] == [1.0, 2.0]
    assert found["summary"]["good"]["n"] == {"median": 2, "min": 1, "max": 3}
    assert not found["complete"]
    assert "Failed, and not measured any further: bad." in capsys.readouterr().out


def test_a_suite_that_a_gpu_has_no_room_for_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.run.graphics", lambda _: {"gpu": "NVIDIA H100", "gpu_memory_gb": 79.2, "gpu_driver": "580"})
    assert main(["gpu_full_8b"]) == 0
    assert capsys.readouterr().out == ("skipped: gpu_full_8b needs a GPU with 130 GiB of memory, this NVIDIA H100 has 79.2\n")


def test_result_is_named_for_the_gpu_and_tells_it() -> None:
    hardware: dict[str, Any] = {"cpu": "AMD EPYC", "cores": 2, "threads": 2, "memory_gb": 8.0, "flags": []}
    result: dict[str, Any] = {
        "suite": "s", "title": "t", "date": "2026-01-01T00:00:00", "revision": None, "complete": True, "hardware": hardware,
        "versions": {}, "rounds": [], "summary": {}, "ratios": [], "targets": [],
    }  # fmt: skip
    assert file_name(result) == "s_amd-epyc-2c_2026-01-01.json"
    hardware |= {"gpu": "NVIDIA H200", "gpu_memory_gb": 139.8, "gpu_driver": "580.1"}
    assert file_name({**result, "complete": False}) == "trial_s_nvidia-h200_2026-01-01.json"
    assert "NVIDIA H200, 139.8 GB, driver 580.1; AMD EPYC" in report.render(result)


def test_what_was_not_measured_has_no_ratio() -> None:
    rounds = [
        {"round": 1, "contestant": "predicted", "metrics": {"a_mb": 1.0, "b_mb": 1.0}},
        {"round": 1, "contestant": "run", "metrics": {"b_mb": 2.0}},
    ]
    targets = [{"metric": metric, "of": "predicted", "over": "run", "within": 0.15} for metric in ("a_mb", "b_mb")]
    assert [entry["metric"] for entry in ratios(rounds, targets)] == ["b_mb"]


def test_many_metrics_are_lines_of_the_table() -> None:
    few = {f"m{i}": 1.0 for i in range(report.ACROSS)}
    for metrics, heads in ((few, "| contestant | m0 |"), ({**few, "more": 2.0}, "| metric | one | two |")):
        rounds = [{"contestant": name, "metrics": metrics} for name in ("one", "two")]
        lines = report.table({"summary": summarise(rounds)}).splitlines()
        assert lines[0].startswith(heads)
        assert len({line.count("|") for line in lines}) == 1
        assert lines[-1].startswith("| more | 2 | 2 |" if "more" in metrics else "| two | 1 |")


SCRIPT = """
import json, sys, pathlib, torch
from torch.utils.checkpoint import checkpoint
from benchmarks.baselines.gpu_clock import GpuClock
from benchmarks.setting import Setting

folder = pathlib.Path(sys.argv[1])
options = {"steps": 4, "warmup_steps": 2, "product_parameters": 1000}
clock = GpuClock(Setting(folder, options), folder, "lora", 6, ends=False)
words = torch.nn.Embedding(4, 1)
optimizer = torch.optim.SGD(words.parameters(), lr=0.0)
torch.nn.init.ones_(words.weight)

def loss(value):
    # Recomputed inside the backward pass, which calls another one with what is no loss.
    return checkpoint(lambda x: 2 * x, words(torch.tensor([0, 1, 2])), use_reentrant=True).sum() * value

loss(100.0).backward()  # a check, as some frameworks make before they train
for step in range(4):
    for value in (1.0, float(step)):
        loss(value).backward()
    optimizer.step()
clock.check()
clock.marks = [0.0, 5.0, 7.0, 11.0]  # seconds: the second step is not measured
clock.write()
"""


@gpu_here
def test_clock_measures_behind_the_warm_up(tmp_path: Path) -> None:
    """6 tokens in each of two steps of 2 and 4 seconds are 2 a second; a loss of 2 * 3 tokens times (1 + step)."""
    done = python(tmp_path, "-c", SCRIPT, str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "measure.json").read_text(encoding="utf-8"))
    assert found["tokens_per_s"] == pytest.approx(2.0)
    assert found["step_ms"] == pytest.approx(3000.0)
    assert found["steps_ms"] == pytest.approx([2000.0, 4000.0])
    assert (found["step_ms_least"], found["step_ms_greatest"]) == pytest.approx((2000.0, 4000.0))
    assert found["mfu"] == pytest.approx(2.0 * 4 * 1000 / PEAK)
    assert (found["first_loss"], found["final_loss"], found["steps"]) == (6.0, 24.0, 4)


@pytest.mark.parametrize(("given", "said"), [("'lora', 5,", "Expected 5 tokens in the second step, counted 6"),
                                             ("'lora', 6,", "Expected 5 optimiser steps, counted 4")])  # fmt: skip
def test_clock_refuses_another_run(given: str, said: str, tmp_path: Path) -> None:
    script = SCRIPT.replace('"lora", 6,', given)
    script = script.replace('"steps": 4', '"steps": 5') if "steps" in said else script
    done = python(tmp_path, "-c", script, str(tmp_path))
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "measure.json").exists()


@pytest.mark.parametrize("words", [
    ("method=lora", "ends=true"), ("method=full", "learning_rate=2.0e-5", "ends=true"),
    ("method=lora", "quantize=nf4", "ends=true"), ("method=full", "master_weights=split", "precision=bf16", "ends=true"),
], ids=lambda words: "-".join(words[:2]))  # fmt: skip
@pytest.mark.parametrize("module", ["benchmarks.gpu_ours", "benchmarks.baselines.trl_gpu"])
def test_contestant_is_measured(module: str, words: tuple[str, ...], setting: Setting, tmp_path: Path) -> None:
    if module.endswith("trl_gpu") and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is a peer, not a dependency: pip install trl")
    lacking = [name for name in NOT_NEEDED if (name, words[1]) != ("bitsandbytes", "quantize=nf4")]
    begin = f"sys.modules.update(dict.fromkeys({lacking})); " if module.endswith("gpu_ours") else ""
    code = f"import runpy, sys; {begin}runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    done = python(tmp_path, "-c", code, str(setting.folder), str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "measure.json").read_text(encoding="utf-8"))
    assert found["steps"] == 4
    assert found["mfu"] == pytest.approx(found["tokens_per_s"] * (6 if "method=full" in words else 4) * PRODUCTS / PEAK)
    assert found["first_loss"] == pytest.approx(math.log(512), abs=0.1)  # random weights know nothing
    assert not (tmp_path / "run" / "final_model").exists()  # the process ended behind its last step


def test_plan_and_runs_share_their_names_and_a_failing_run_loses_no_other(tmp_path: Path) -> None:
    """A Llama has no biases for bitfit: plan says why, fit refuses, and neither has a number for it."""
    more: dict[str, Any] = {
        "row_tokens": [30, 60],
        "max_length": 60,
        "batch_tokens": [128],
        "steps": 2,
        "methods": ["bitfit", "lora"],
    }
    more |= {"shape": {**SHAPE, "hidden_size": 64, "intermediate_size": 128}, "train_rows": 40}
    setting = build({**OPTIONS, **more, "quantize": ["nf4"]}, None, tmp_path / "setting")
    found = {}
    for way in ("predict", "run"):
        (tmp_path / way).mkdir()
        done = python(tmp_path, "-m", "benchmarks.gpu_plan", str(setting.folder), str(tmp_path / way), way)
        assert done.returncode == 0, done.stderr
        found[way] = json.loads((tmp_path / way / "measure.json").read_text(encoding="utf-8"))
    assert found["run"].pop("failed") == 1
    assert set(found["run"]) >= {"lora_128_mb", "lora_nf4_128_mb"}
    assert all(value > 0 for values in found.values() for value in values.values())
    assert set(found["predict"]) == {"lora_128_mb", "lora_nf4_128_mb", "plan_128_s"}
    assert "bitfit_128: FAILED" in done.stdout
    assert "biases" in done.stderr
    assert not any("bitfit" in metric for metric in found["run"])
