"""Tests on several processes: a test's file runs itself once for each rank, over gloo."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT = 300
"""Seconds that all ranks together may take."""


def run_on_ranks(script: str, size: int, folder: Path) -> list[str]:
    """What each rank printed, where `script` (a test's `__file__`) does its work within `as_rank()` when it is run by itself.

    Args:
        script: Is run `size` times at once.
        size: Number of ranks.
        folder: An empty one, in which they meet.

    Raises:
        AssertionError: a rank failed; it says what all of them printed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, script, str(folder / "meeting"), str(size)]
    ranks = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(size)
    ]
    outputs = [rank.communicate(timeout=WAIT)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(outputs)
    return outputs


@contextlib.contextmanager
def as_rank() -> Iterator[int]:
    """Within it this process is one of those that `run_on_ranks` started, and the number of it."""
    meeting, size, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    yield rank
    torch.distributed.barrier()  # gloo's threads end badly, now and then, where the other rank has gone before
    torch.distributed.destroy_process_group()
