"""How many processes there will be, and which of them this is, before any process group exists."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from lightning_ft.config import TrainingConfig


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    size: int
    """Data-parallel ranks."""
    devices: int | str
    """What Lightning is told: processes on this machine, or which GPUs."""
    rank: int
    """This process's rank."""

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0


RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers say the rank; Lightning looks at the same variables in the same order."""


def world(config: TrainingConfig) -> World:
    """From `devices`, `trainer.num_nodes` and the launcher's environment (torchrun, SLURM, Lightning's own children).

    Raises:
        UsageError: `devices` is not a number, `auto`, or a list of GPUs.
    """
    rank = int(next((os.environ[name] for name in RANKS if name in os.environ), "0"))
    nodes = int(config.trainer.get("num_nodes", 1))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return World(int(os.environ["WORLD_SIZE"]), local, rank)
    devices = config.devices
    if devices == "auto":
        local = torch.cuda.device_count() or 1
    elif isinstance(devices, int) or str(devices).isdigit():
        local = devices = int(devices)
    else:
        local = len([part for part in str(devices).strip("[]").split(",") if part.strip().isdigit()])
    if local < 1:
        raise UsageError(f"Expected --devices to be a number of processes, GPUs as 0,1, or auto; got {devices!r}.")
    return World(local * nodes, devices if devices != "auto" else local, rank)
