"""A run that was interrupted and resumed is the run that was not: weights bit for bit, metrics line for line.

On one thread, with dropout, accumulation, an epoch's border in the middle and a partial last step. Kills are SIGKILL: in the
middle of a step, of a validation, and before chosen operations on files, so also between those of a checkpoint's writing.
"""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

KILL, TERM, ALARM = signal.SIGKILL, signal.SIGTERM, signal.SIGALRM
COMMON = (
    "--epochs", 2, "--batch_size", 2, "--accumulate", 4, "--precision", "fp32", "--learning_rate", 0.003, "--verdict_rows", 0,
    "--devices", 1, "--eval_every", 2, "--keep_best", 2, "--preflight", "false",
)  # fmt: skip
VARIANTS: dict[str, tuple[object, ...]] = {
    "full, packed": (
        "--method", "full", "--packing", "on", "--log_every", 5, "--neftune_noise_alpha", 5, "--dropout", 0.2,
        "--lr_scheduler", "wsd", "--monitor", "val_token_accuracy",
    ),
    "lora, padded, 2 workers": (
        "--method", "lora", "--method.dropout", 0.1, "--packing", "off", "--workers", 2, "--save_every", 3, "--log_every", 1,
        "--neftune_noise_alpha", 5, "--label_smoothing", 0.1, "--lr_scheduler", "cosine_with_restarts", "--eval_batch_size", 2,
    ),
    "full, Muon": ("--method", "full", "--optimizer", "Muon", "--packing", "off"),
    "full, streamed": ("--method", "full", "--stream", 20, "--max_steps", 12, "--log_every", 1),
}  # fmt: skip


@dataclass
class Whole:
    """An uninterrupted run and the command that made it."""

    words: tuple[object, ...]
    run: Path
    operations: int
    seconds: float
    forks: Any
    of_run: Any

    def start(self, run: Path, *more: object, **options: Any) -> Any:
        """The same command into another folder."""
        return self.forks("fit", *self.words, "--output", run, *more, folder=run, **options)

    def resume(self, run: Path, *, name: Path | None = None, **options: Any) -> Any:
        """`fit --resume` with nothing else."""
        return self.forks("fit", "--resume", name or run, folder=run, **options)

    def check(self, run: Path) -> None:
        """The run is this one."""
        for folder in ("final_model", "best_model"):
            mine, other = self.of_run.weights(self.run, folder), self.of_run.weights(run, folder)
            assert mine.keys() == other.keys()
            assert mine
            assert all(torch.equal(mine[name], other[name]) for name in mine), folder
        assert self.of_run.lines(run) == self.of_run.lines(self.run)
        mine, other = self.record(self.run), self.record(run)
        for key in ("status", "best_step", "steps", "total_steps"):
            assert mine[key] == other[key]
        assert "error" not in other
        assert self.checkpoints(run) == self.checkpoints(self.run)
        for name in ("ledger.json", "stream.json"):
            assert (run / name).exists() is (self.run / name).exists()
            assert not (run / name).exists() or (run / name).read_bytes() == (self.run / name).read_bytes()
        assert (run / "report.html").is_file()
        assert not list(run.rglob(".tmp*"))

    @staticmethod
    def record(run: Path) -> dict[str, Any]:
        """run.json."""
        found: dict[str, Any] = json.loads((run / "run.json").read_text())
        return found

    @staticmethod
    def checkpoints(run: Path) -> list[str]:
        """Names of the checkpoints."""
        return sorted(p.name for p in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module", params=VARIANTS)
def whole(
    request: pytest.FixtureRequest, forks: Any, of_run: Any, backbone: Path, uneven: Path, tmp_path_factory: Any
) -> Whole:
    words = ("--model", backbone, "--data", uneven, *COMMON, *VARIANTS[request.param])
    run = tmp_path_factory.mktemp("whole") / "run"
    ended = forks("fit", *words, "--output", run, folder=run).ended()
    return Whole(words, run, ended.operations, of_run.seconds(run), forks, of_run)


def test_the_whole_run_is_what_the_tests_take_it_for(whole: Whole) -> None:
    lines = whole.of_run.lines(whole.run)
    assert lines[-1]["step"] == 12
    assert lines[-1]["epoch"] == (1 if "--stream" in whole.words else 2), "a stream says how often it began again"
    validated = [line["step"] for line in lines if "val_loss" in line]
    assert len(validated) == len(set(validated))
    assert validated[-1] == 12
    trained = [line["loss"] for line in lines if "loss" in line]
    assert trained[-1] < trained[0]


def test_killed_and_resumed_again_and_again(whole: Whole, tmp_path: Path) -> None:
    """One run in six pieces: RUN, CHECKPOINT and auto by turns, with half a line and a broken checkpoint on the way."""
    run = tmp_path / "run"
    whole.start(run, hit={"micro-batch": (15, KILL)}).ended(-KILL)
    whole.resume(run, hit={"validation": (2, KILL)}).ended(-KILL)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    ended = whole.start(run, "--resume", "auto", hit={"operation": (17, KILL)}).ended(-KILL)
    assert f"resume: {run} from checkpoint-step-" in ended.log
    newest = max((run / "checkpoints").glob("checkpoint-step-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    whole.resume(run, name=newest, hit={"clip": (4, KILL)}).ended(-KILL)
    newest = max((run / "checkpoints").glob("checkpoint-step-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    state = bytearray((newest / "trainer_state.safetensors").read_bytes())
    state[-1] ^= 1
    (newest / "trainer_state.safetensors").write_bytes(state)
    ended = whole.start(run, "--resume", "auto", hit={"best model": (1, KILL)}).ended(-KILL)
    assert f"{newest.name} is broken (trainer_state.safetensors has another hash" in ended.log
    whole.resume(run).ended()
    whole.check(run)


@pytest.mark.parametrize("at", [15, 31], ids=["where a validation is due", "where none is"])
def test_a_signal_loses_nothing(whole: Whole, tmp_path: Path, at: int) -> None:
    """SIGTERM in step 4 and in step 9: a step has four micro-batches, the last one of an epoch has one."""
    run = tmp_path / "run"
    ended = whole.start(run, hit={"micro-batch": (at, TERM)}).ended(128 + TERM)
    step = "" if "--stream" in whole.words else f"{4 if at == 15 else 9} of 12"  # its shards have steps of other sizes
    assert f"Stopped by SIGTERM after step {step}" in ended.log
    assert whole.record(run)["status"] == "interrupted"
    whole.resume(run).ended()
    whole.check(run)


def test_the_preflight_leaves_no_trace_and_can_be_stopped(whole: Whole, tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole.start(run, "--preflight", "true", hit={"micro-batch": (3, TERM)}).ended(128 + TERM)
    assert "preflight: peak memory" in whole.resume(run).ended().log
    whole.check(run)


def test_a_run_that_ended_early_is_not_trained_further(
    forks: Any, of_run: Any, backbone: Path, uneven: Path, tmp_path: Path
) -> None:
    words = (
        "--model", backbone, "--data", uneven, *COMMON, "--method", "full", "--early_stopping", 1,
        "--lr_scheduler", "constant", "--learning_rate", 0.3,
    )  # fmt: skip
    whole = Whole(words, tmp_path / "whole", 0, 0, forks, of_run)
    whole.start(whole.run).ended()
    steps = whole.record(whole.run)["steps"]
    assert steps < 12
    run = tmp_path / "run"
    # Killed before the validation that says stop, and when training has stopped.
    whole.start(run, hit={"validated": (steps // 2, KILL)}).ended(-KILL)
    whole.resume(run, hit={"finish": (1, KILL)}).ended(-KILL)
    whole.resume(run).ended()
    whole.check(run)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_before_operations_on_files(whole: Whole, tmp_path: Path) -> None:
    for at in range(1, whole.operations + 1, 3):
        run = tmp_path / f"run_{at}"
        whole.start(run, hit={"operation": (at, KILL)}).ended(-KILL)
        if not (run / "run.json").is_file():
            whole.start(run).ended()  # nothing was written that could be resumed: the same command starts anew
        elif whole.record(run)["status"] != "finished":
            whole.resume(run).ended()
        whole.check(run)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_moments(whole: Whole, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    run = tmp_path / "run"

    def resumed(**options: Any) -> Any:
        return whole.resume(run, **options) if (run / "run.json").is_file() else whole.start(run, **options)

    for _ in range(12):
        ended = resumed(hit={"after": (draw.uniform(0.2, 2) * (whole.seconds + 1), ALARM)})
        if ended.status == 0:
            break
        ended.ended(-ALARM)
        if (run / "run.json").is_file() and whole.record(run)["status"] == "finished":
            break  # the process was on its way out
    else:
        resumed().ended()
    whole.check(run)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_ranks_stop_together_and_go_on(of_run: Any, environment: Any, backbone: Path, uneven: Path, tmp_path: Path) -> None:
    words = ["--model", backbone, "--data", uneven, *COMMON, *VARIANTS["full, packed"]]
    words += ["--devices", 2, "--strategy", "ddp", "--accumulate", 2, "--log_every", 3]
    command = [sys.executable, "-m", "lightning_ft", "fit"]
    for name, end in (("whole", 0), ("run", 128 + TERM)):
        with subprocess.Popen(
            [*command, *map(str, words), "--output", str(tmp_path / name)],
            env=os.environ | environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            log = []
            for line in process.stderr:
                log.append(line)
                if name == "run" and line.startswith("step 4/12"):
                    process.send_signal(TERM)
        assert process.returncode == end, "".join(log)
    again = [*command, "--resume", str(tmp_path / "run")]
    done = subprocess.run(again, env=os.environ | environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mine, other = of_run.weights(tmp_path / "whole"), of_run.weights(tmp_path / "run")
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert of_run.lines(tmp_path / "run") == of_run.lines(tmp_path / "whole")
