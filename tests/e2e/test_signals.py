"""Signals to a run, and two processes that want one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "calls", "number", "saved"),
    [
        ("step", 3, signal.SIGINT, 3), ("step", 3, signal.SIGTERM, 3), ("step", 6, signal.SIGTERM, 6),
        ("validation", 2, signal.SIGTERM, 4), ("save", 2, signal.SIGINT, 4), ("save", 3, signal.SIGTERM, 6),
    ],
)  # fmt: skip
def test_a_signal_ends_the_step_and_saves(
    runs: Any, argv: tuple[object, ...], clean: None, at: str, calls: int, number: signal.Signals, saved: int
) -> None:
    code, log = runs(*argv, fault=(at, calls, "signals", [number]))
    assert code == 128 + number, log
    said = runs.sentence(log)
    assert f"Stopped by {number.name} after step" in said
    assert f"--resume {runs.RUN}" in said
    assert runs.status() == "interrupted"
    assert runs.steps()[-1] in (saved, saved + 1)  # a signal in a save is seen after the next step
    last = runs.steps()[-1]
    code, log = runs("--resume", runs.RUN)
    assert code == 0, log
    assert f"from checkpoint-step-{last}" in log
    assert (runs.status(), runs.steps()[-1]) == ("finished", 6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_run_leaves_its_workers_alone(
    runs: Any, argv: tuple[object, ...], clean: None, number: signal.Signals
) -> None:
    """As Ctrl-C in a terminal: a worker that died of it would end the run in the middle of its step."""
    code, log = runs(*argv, "--workers", "2", fault=("step", 3, "group", number))
    assert code == 128 + number, log
    assert f"Stopped by {number.name} after step 3 of 6; everything is saved" in runs.sentence(log)
    assert runs.steps()[-1] == 3


def test_a_second_signal_stops_at_once(runs: Any, argv: tuple[object, ...], clean: None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        code, log = runs(*argv, "--output", f"runs/{number}", fault=("step", 3, "signals", [number, number]))
        assert code == 128 + number, log
        assert "Stopped at once" in runs.sentence(log)
        assert "--resume" in log
        assert runs.steps(Path(f"runs/{number}")) == [2]
        assert runs.status(Path(f"runs/{number}")) == "interrupted"


@pytest.mark.parametrize(
    ("at", "number"), [("preflight", signal.SIGINT), ("preflight", signal.SIGTERM), ("finish", signal.SIGTERM)]
)
def test_a_signal_before_or_after_the_steps_has_its_code_too(
    runs: Any, argv: tuple[object, ...], clean: None, at: str, number: signal.Signals
) -> None:
    code, log = runs(*argv, "--preflight", "true", fault=(at, 1, "signals", [number]))
    assert code == 128 + number, log
    assert f"Stopped at once by {number.name}" in runs.sentence(log)
    assert runs.status() == "interrupted"
    assert not list(runs.RUN.rglob(".tmp-*"))
    runs.goes_on()


# ---- two processes --------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_until_its_process_is_gone(runs: Any, argv: tuple[object, ...], clean: None) -> None:
    first = runs.start(*argv, fault=("step", 5, "signals", [signal.SIGSTOP]))
    while "step 4/6" not in first[1].read_text():
        assert Path(f"/proc/{first[0]}").exists(), first[1].read_text()
    for other in (argv, ("--resume", runs.RUN), (*argv, "--resume", "auto")):
        code, log = runs(*other)
        assert code == 2, log
        assert f"in use by process {first[0]} on " in runs.sentence(log)
    os.kill(first[0], signal.SIGKILL)
    assert runs.wait(first)[0] == -signal.SIGKILL
    assert runs.status() == "running"
    runs.goes_on()


def test_runs_at_the_same_time_get_folders_of_their_own(runs: Any, models: dict[str, Path], data: Path, clean: None) -> None:
    few = [word for word in runs.FIT if word not in ("--output", "runs/a")]
    started = [runs.start(models["llama"], "--data", data, *few, "--max_steps", "2") for _ in range(3)]
    ended = [runs.wait(run) for run in started]
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert sorted(path.name for path in Path("runs").iterdir()) == [f"instruct_support_{n}" for n in (1, 2, 3)]
    assert {runs.status(path) for path in Path("runs").iterdir()} == {"finished"}


def test_the_command_itself_stops_by_a_signal_from_outside(runs: Any, argv: tuple[object, ...], clean: None) -> None:
    command = [sys.executable, "-m", "lightning_ft", "fit", *map(str, argv), "--max_steps", "100000", "--epochs", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("step "))
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 143, said + rest
    assert "everything is saved" in rest
    assert runs.status() == "interrupted"
