"""Computing threads that fit: a container may have less of the processor than it sees cores."""

from __future__ import annotations

import math
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of the processor in each period, and the period's length (Linux, Control Group v2)."""


def quota() -> int | None:
    """Cores' worth of time that the container gives, rounded up; None where it sets no limit or the system does not tell."""
    try:
        given, period = QUOTA.read_text(encoding="ascii").split()
        return math.ceil(int(given) / int(period))
    except (OSError, ValueError):  # "max" is no number
        return None


def keep_to_quota(processes: int = 1) -> None:
    """Compute with no more threads than the container gives, shared among so many processes of it.

    More of them are stopped by the system in the middle of a product, while the others wait for them at its end: the step
    takes many times as long.
    """
    most = quota()
    if most is not None and torch.get_num_threads() > (share := max(1, most // processes)):
        torch.set_num_threads(share)
