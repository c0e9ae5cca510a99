"""A process of a run on one machine is killed: the others say which, and end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lightning_ft.checkpoint import checkpoints


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_process_that_is_killed_is_named_by_the_others(
    strategy: str, plain_backbone: Path, uneven: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Lightning started it, and would by itself kill the first process before that could say a word."""
    words: list[object] = [
        "fit", "--model", plain_backbone, "--data", uneven, "--output", tmp_path / "run", "--devices", 2, "--method", "full",
        "--strategy", strategy, "--batch_size", 4, "--epochs", 5000, "--max_steps", 5000, "--log_every", 1, "--save_every", 10,
        "--precision", "fp32", "--verdict_rows", 0, "--preflight", "false", "--rank_timeout", 20,
    ]  # fmt: skip
    command = [sys.executable, "-m", "lightning_ft", *map(str, words)]
    said = []
    with subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("step 11/"):
                children = subprocess.run(
                    ["pgrep", "-P", str(process.pid), "-f", "lightning_ft"], capture_output=True, text=True
                )
                (child,) = children.stdout.split()
                os.kill(int(child), signal.SIGKILL)
                break
        said += process.stderr.readlines()
    assert process.returncode == 1, "".join(said)
    assert "Rank 1 of 2 does not answer any more" in said[-1], "".join(said)
    assert said[-1].rstrip().endswith(f"Go on with --resume {tmp_path / 'run'}.")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert checkpoints(tmp_path / "run")
