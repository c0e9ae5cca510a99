"""Every preset as it is typed, and what the larger ones promise, on the embedded model."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import pytest
import torch
import yaml
from safetensors.torch import load_file

import lightning_ft
from lightning_ft.cli.yamlfile import find_config, presets
from lightning_ft.engine import matrix_units, native_kernels
from lightning_ft.loading import embedded_folder
from lightning_ft.registry import registry
from lightning_ft.run.hardware import bf16_is_fast

if TYPE_CHECKING:
    from lightning_ft.types import Step

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = embedded_folder().parent / "data" / "support.jsonl"
OF_TASKS = ("chat", "classify", "code", "constrained", "domain", "instruct", "reasoning", "safety", "text")
"""Tasks that have a preset of their name."""
BY_CONTENT = {"custom", "messages", "self_instruct", "templated", "tree"}
"""Tasks whose files, or whose user, say what they are."""


def values_of(name: str) -> dict[str, Any]:
    return dict(find_config(name).values)


@pytest.mark.parametrize("name", presets())
def test_every_key_has_its_reason_and_names_an_option(name: str) -> None:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "tests" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    path = presets()[name]
    keys = pages.preset_keys(path)
    assert keys
    assert all(why for _, _, why in keys), keys
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    flat = {f"{k}.{n}" if isinstance(v, dict) else k for k, v in values.items() for n in (v if isinstance(v, dict) else [k])}
    assert {key for key, _, _ in keys} == flat, "the table shows the whole preset"
    assert path.read_text().startswith("# ")


def test_every_task_that_a_user_names_has_a_preset() -> None:
    found = {values_of(name)["task"] for name in presets() if "task" in values_of(name)}
    assert found == {*OF_TASKS, "preference"}, "pairs have one by the name of their objective"
    trainable = {example for entry in registry().objectives.values() for example in entry.cls.examples}
    trained = {name for name, entry in registry().tasks.items() if set(entry.cls.kinds()) <= trainable}
    assert found | BY_CONTENT == trained, "a task that no objective trains on needs none yet"


def rows_of(task: str) -> list[dict[str, Any]]:
    cls = registry().tasks[task].cls
    return list(getattr(cls, "samples", None) or [{"text": "Once upon a time there was a small house."}])


@pytest.mark.parametrize("name", presets())
def test_a_run_with_it_is_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "qlora":
        pytest.importorskip("lightning_ft_quantize")
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "rows.jsonl"
    if "task" in values_of(name):
        rows = rows_of(values_of(name)["task"])
        data.write_text("".join(json.dumps(row | {"id": n}) + "\n" for n in range(-(-60 // len(rows))) for row in rows))
    else:
        data.write_text("".join(line + "\n" for line in SUPPORT.read_text().splitlines()[::9]))
    words = ["fit", "--model", "embedded", "--data", str(data), "--config", name, "--output", "run"]
    from lightning_ft.cli import main

    assert (
        main(
            [
                *words,
                "--max_steps",
                "2",
                "--verdict_rows",
                "2",
                "--max_new_tokens",
                "4",
                "--preflight",
                "false",
                "--retention",
                "none",
            ]
        )
        == 0
    )
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    not_kept = {"max_steps", "verdict_rows", "max_new_tokens", "retention", "resume"}  # given here, or of one start alone
    for key, value in values_of(name).items():
        if key in not_kept:
            continue
        if key in ("method", "task", "objective"):
            assert written[key]["name"] == (value["name"] if isinstance(value, dict) else value)
            assert not isinstance(value, dict) or written[key].items() >= value.items()
        else:
            assert written[key] == value, key


class StepMemory(L.Callback):
    """Bytes of tensors at the peak of the second step: weights and optimiser state, and what the step adds to them."""

    peak = 0
    held = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Step, batch_idx: int) -> None:
        if trainer.global_step != 1:
            return
        states = [tensor for optimizer in trainer.optimizers for state in optimizer.state.values() for tensor in state.values()]
        kept = [*pl_module.parameters(), *(tensor for tensor in states if isinstance(tensor, torch.Tensor))]
        self.held = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        self.profiler = torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU])
        self.profiler.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        if trainer.global_step != 2:
            return
        self.profiler.stop()
        profiled: Any = self.profiler.profiler
        events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
        now = added = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            added = max(added, now)
        self.peak = self.held + added


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of about 390 tokens: seven conversations each."""
    rows = [json.loads(line)["messages"] for line in SUPPORT.read_text().splitlines()]
    path = tmp_path_factory.mktemp("long") / "long.jsonl"
    joined = ({"messages": [m for turns in rows[i : i + 7] for m in turns if m["role"] != "system"]} for i in range(100))
    path.write_text("".join(json.dumps(row) + "\n" for row in joined))
    return path


def step_memory(name: str | None, rows: Path, output: Path) -> int:
    memory = StepMemory()
    values = values_of(name) if name else {}
    given = {"max_steps": 2, "verdict_rows": 0, "preflight": False, "save_every": 0, "trainer": {"callbacks": [memory]}}
    lightning_ft.fit(model="embedded", data=str(rows), output=str(output), **{**values, **given})
    assert memory.peak > memory.held > 5_000_000
    return memory.peak


def test_low_resource_takes_at_most_half_of_the_memory(long_rows: Path, tmp_path: Path) -> None:
    """Of tensors: Python and the libraries take what they take."""
    usual = step_memory(None, long_rows, tmp_path / "default")
    low = step_memory("low_resource", long_rows, tmp_path / "low")
    assert low <= 0.5 * usual
    said = (109e6, 19e6, 41e6) if native_kernels.library() else (123e6, 22e6, 43e6)
    said = (90e6, 18e6, 36e6) if matrix_units.work() else said
    said = said if bf16_is_fast() else (203e6, 34e6, 74e6)
    assert (usual, low) == pytest.approx(said[:2], rel=0.1), "README.md says so"
    if "qlora" in presets():
        assert step_memory("qlora", long_rows, tmp_path / "qlora") == pytest.approx(said[2], rel=0.1), "README.md says so"


@pytest.mark.long
def test_high_quality_is_better_than_quick_test_on_the_same_held_out_rows(tmp_path: Path) -> None:
    found = {}
    for name in ("quick_test", "high_quality"):
        given = {"verdict_rows": 0, "preflight": False, "output": str(tmp_path / name)}
        run = lightning_ft.fit(model="embedded", data=str(SUPPORT), **{**values_of(name), **given})
        with (run.folder / "metrics.jsonl").open() as lines:
            found[name] = min(line["val_loss"] for line in map(json.loads, lines) if "val_loss" in line)
    assert found["high_quality"] < found["quick_test"] - 0.5


def test_production_survives_kill_9_on_two_ranks(tmp_path: Path) -> None:
    """The same command again goes on from the last checkpoint, and ends with the bits of a run that nobody killed."""
    words = [
        sys.executable, "-m", "lightning_ft", "fit", "--model", "embedded", "--data", str(SUPPORT),
        "--config", "production", "--devices", "2", "--max_steps", "6", "--batch_size", "2", "--eval_every", "2",
        "--log_every", "1", "--precision", "fp32", "--verdict_rows", "0", "--preflight", "false",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run([*words, "--output", "whole/run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr

    killed = [*words, "--output", "killed/run"]
    process = subprocess.Popen(killed, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "run"
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "checkpoint-step-2").is_dir():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for number in (*map(int, children), process.pid):
        os.kill(number, signal.SIGKILL)
    process.wait()
    assert not (folder / "final_model").exists()

    again = subprocess.run(killed, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resume: " in again.stderr + again.stdout
    mine, theirs = (
        load_file(tmp_path / name / "run" / "final_model" / "adapter_model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
