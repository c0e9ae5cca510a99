"""Who is gone, as those find out that are left; and that they are left the time to."""

from __future__ import annotations

import errno
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch.strategies.launchers import subprocess_script as launcher
from torch.distributed.checkpoint.api import CheckpointException

from lightning_ft.errors import TrainingError
from lightning_ft.run import sharded
from lightning_ft.run.folder import RunFolder
from lightning_ft.run.ranks import AFTER, Ranks, leave_time

LATE = "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 100ms for recv operation to complete"
CLOSED = "[gloo/transport/tcp/unbound_buffer.cc:81] Application timeout caused pair closure"
BROKEN = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:25017"


class Awaited:
    def __init__(self, error: str) -> None:
        self.error = error

    def wait(self, _: Any) -> None:
        if self.error:
            raise RuntimeError(self.error)


@pytest.mark.parametrize(
    ("errors", "named"),
    [
        ({1: BROKEN, 2: "", 3: LATE}, "Rank 1 of 4"), ({1: LATE, 2: "", 3: LATE}, "Rank 1, 3 of 4"),
        ({1: LATE, 2: CLOSED, 3: ""}, "Rank 1, 2 of 4"), ({1: "", 2: "", 3: ""}, "A rank of 4"),
    ],
)  # fmt: skip
def test_who_is_late_is_not_taken_for_gone_where_a_connection_broke(
    errors: dict[int, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a ring a process waits for a neighbour that is alive, and comes to ask long after the others."""
    ranks = Ranks(0.1, RunFolder(Path("run")))
    ranks._group, ranks._size = object(), 4
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "isend", lambda *_: Awaited(""))
    monkeypatch.setattr(torch.distributed, "irecv", lambda _, rank, group: Awaited(errors[rank]))
    said = ranks.lost(RuntimeError(BROKEN))
    assert said is not None
    assert said.startswith(f"{named} does not answer any more")
    assert ranks.lost(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize(("connected", "expected"), [(True, [5, 60.0 + AFTER, "killed"]), (False, [5, "killed"])])
def test_lightning_leaves_time_to_find_out(connected: bool, expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its observer kills the whole run within five seconds of the end of a process."""
    done: list[Any] = []
    real = time.sleep

    def sleep(seconds: float) -> None:
        done.append(seconds)
        real(0.01)

    launching: Any = launcher
    monkeypatch.setattr(launching, "_launch_process_observer", launching._launch_process_observer)  # to be put back
    monkeypatch.setattr(subprocess_script._logger, "level", subprocess_script._logger.level)  # as well
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(subprocess_script._ChildProcessObserver, "_terminate_all", lambda _: done.append("killed"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: connected)
    leave_time(60.0)
    child = subprocess.Popen(["false"])
    child.wait()
    launching._launch_process_observer([child])
    deadline = time.monotonic() + 20
    while "killed" not in done and time.monotonic() < deadline:
        real(0.01)
    assert done == expected


def test_a_full_disk_is_told_of_parts_too(tmp_path: Any) -> None:
    """torch hands on what happened in each process in an exception that is no `Exception`."""
    full: dict[int, Any] = {1: (OSError(errno.ENOSPC, "No space left on device"), None)}
    said = r"^Could not write '.*step-4': No space left on device; .* type --resume"
    with pytest.raises(TrainingError, match=said), sharded._told(tmp_path / "step-4"):
        raise CheckpointException("", full)
    other: dict[int, Any] = {0: (ValueError("lost"), None)}
    said = "expected parts of a checkpoint that can be written and read, got: lost"
    with pytest.raises(TrainingError, match=said), sharded._told(tmp_path / "step-4"):
        raise CheckpointException("", other)
