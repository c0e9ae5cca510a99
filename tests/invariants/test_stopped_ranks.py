"""Signals to several processes outside of training steps: all of them end at once, and say what a single one says."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

WORDS = (
    "--precision", "fp32", "--max_steps", 4, "--eval_every", 2, "--method", "full", "--devices", 2, "--strategy", "ddp",
    "--verdict_rows", 2, "--max_new_tokens", 4,
)  # fmt: skip


@pytest.mark.parametrize("place", ["preflight", "verdict"])
def test_a_signal_ends_all_of_them(place: str, forks: Any, plain_backbone: Path, uneven: Path, tmp_path: Path) -> None:
    """By itself Lightning would talk to the other ranks in a signal, whatever these wait for just then."""
    run, hit = tmp_path / "run", {place: (1, signal.SIGTERM)}
    words = ("fit", "--model", plain_backbone, "--data", uneven, "--output", run, *WORDS)
    ended = forks(*words, folder=run, hit=hit, processes=2).ended(128 + signal.SIGTERM)
    assert "Stopped at once by SIGTERM" in ended.log
    assert "Traceback" not in ended.log
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
