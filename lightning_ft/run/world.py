"""How many processes there will be, and which of them this is, before any process group exists."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lightning_ft.errors import UsageError, did_you_mean

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
    local_rank: int = 0
    """Its number among the processes of this machine."""

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def launched(self) -> bool:
        """Whether there are several processes, and something else than Lightning's own launcher may have started them."""
        return self.size > 1 and any(name in os.environ for name in RANKS)

    @property
    def device(self) -> torch.device:
        """Where Lightning will put this process's model: the CPU, or one of the GPUs that `devices` names."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        named = [int(part) for part in str(self.devices).strip("[]").split(",") if part.strip()]
        listed = isinstance(self.devices, str)
        return torch.device("cuda", named[self.local_rank] if listed else self.local_rank)


RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers say the rank; Lightning looks at the same variables in the same order."""


def world(config: TrainingConfig) -> World:
    """From `devices`, `trainer.num_nodes` and the launcher's environment (torchrun, SLURM, Lightning's own children).

    Raises:
        UsageError: `devices` is not a number, `auto`, or a list of GPUs, or `num_nodes` is no number.
    """
    nodes = config.trainer.get("num_nodes", 1)
    if isinstance(nodes, bool) or not str(nodes).isdigit() or int(nodes) < 1:
        raise UsageError(f"Expected --trainer.num_nodes to be a number of machines; got {nodes!r}.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return World(int(os.environ["WORLD_SIZE"]), local, _rank(local), int(os.environ["LOCAL_RANK"]))
    devices: int | str = config.devices
    parts = [part.strip() for part in str(devices).strip("[]").split(",") if part.strip()]
    if devices == "auto":
        local = devices = torch.cuda.device_count() or 1
    elif not parts or not all(part.isdigit() for part in parts):
        local = 0
    elif isinstance(devices, str) and ("," in devices or "[" in devices):
        local = len(parts)
    else:
        local = devices = int(devices)
    if local < 1:
        raise UsageError(f"Expected --devices to be a number of processes, GPUs as 0,1, or auto; got {config.devices!r}.")
    rank = _rank(local)
    return World(local * int(nodes), devices, rank, rank % local)


def _rank(local: int) -> int:
    """This process's number among all; Lightning's own children only know theirs on this machine."""
    name = next((name for name in RANKS if name in os.environ), None)
    rank = int(os.environ[name]) if name else 0
    if name in (None, "LOCAL_RANK"):
        rank += local * int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))
    return rank


GPU_ONLY = ("fsdp", "deepspeed")
"""Beginnings of the names of Lightning's strategies that take no CPU."""


def check_strategy(name: str) -> None:
    """Refuse a strategy that Lightning does not know.

    Raises:
        UsageError: it is unknown.
    """
    from lightning.pytorch.strategies import StrategyRegistry

    known = ("auto", *StrategyRegistry.available_strategies())
    if name not in known:
        raise UsageError(f"Expected --strategy to be one of {', '.join(known)}; got '{name}'.{did_you_mean(name, known)}")
    if name.startswith(GPU_ONLY) and not torch.cuda.is_available():
        raise UsageError(f"Expected a GPU for --strategy {name}, found none; type --strategy ddp.")
