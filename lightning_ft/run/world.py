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
    """All of them."""
    devices: int | str
    """What Lightning is told: processes on this machine, or which GPUs."""
    rank: int
    """This process's rank."""
    local_rank: int = 0
    """Its number among the processes of this machine."""
    together: int = 1
    """Neighbouring processes that hold each layer together and see the same rows."""

    @property
    def on_machine(self) -> int:
        """How many of them this machine has."""
        return self.devices if isinstance(self.devices, int) else len(self._listed)

    @property
    def _listed(self) -> list[int]:
        """The GPUs that `devices` names."""
        return [int(part) for part in str(self.devices).strip("[]").split(",") if part.strip()]

    @property
    def data_size(self) -> int:
        """Data-parallel ranks: those that see different rows."""
        return self.size // self.together

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
        return torch.device("cuda", self._listed[self.local_rank] if isinstance(self.devices, str) else self.local_rank)


RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers say the rank; Lightning looks at the same variables in the same order."""
SHELLS = ("bash", "interactive")
"""Names of SLURM's jobs in which somebody types, and Lightning starts the processes."""


def world(config: TrainingConfig) -> World:
    """From `devices`, `trainer.num_nodes` and the launcher's environment (torchrun, SLURM, Lightning's own children).

    Raises:
        UsageError: `devices` is not a number, `auto`, or a list of GPUs, or `num_nodes` is no number.
    """
    nodes = config.trainer.get("num_nodes", 1)
    if isinstance(nodes, bool) or not str(nodes).isdigit() or int(nodes) < 1:
        raise UsageError(f"Expected --trainer.num_nodes to be a number of machines; got {nodes!r}.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return World(size, local, _rank(local), int(os.environ["LOCAL_RANK"]), _together(config, size, local))
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
    size = local * int(nodes)
    return World(size, devices, rank, rank % local, _together(config, size, local))


def check_here(found: World) -> None:
    """Refuse what this machine or its launcher cannot make of these processes, before any of them begins.

    Raises:
        UsageError: GPUs that are not there, or other processes than SLURM has started.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _check_gpus(found.devices, torch.cuda.device_count())
        _check_slurm(found.size)


def _check_gpus(devices: int | str, there: int) -> None:
    if isinstance(devices, str):
        named = sorted(int(part) for part in devices.strip("[]").split(",") if part.strip())
        if named[-1] >= there:
            has = f"GPUs 0 to {there - 1}" if there else "no GPU"
            raise UsageError(f"Expected --devices to name GPUs of this machine, which has {has}; got {devices}.")
    elif there and devices > there:
        raise UsageError(f"Expected --devices to be at most {there}, the GPUs of this machine; got {devices}.")


def _check_slurm(size: int) -> None:
    """Of another number of processes than `srun` has started each would train the whole run, in one folder."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")  # a batch script, which is one process, has the job's SLURM_NTASKS
    by_slurm = next((name for name in RANKS if name in os.environ), None) == "SLURM_PROCID"
    if by_slurm and tasks.isdigit() and os.environ.get("SLURM_JOB_NAME") not in SHELLS and int(tasks) != size:
        raise UsageError(
            f"Expected as many processes as srun has started, {tasks}, got {size}: --devices (of each machine) times "
            "--trainer.num_nodes; type both, or give srun --ntasks-per-node and --nodes to fit."
        )


def _together(config: TrainingConfig, size: int, local: int) -> int:
    """Processes that hold each layer together: all of them, or all of a machine, where the user does not say.

    Raises:
        UsageError: the processes cannot be parted so, or nothing is cut by the strategy.
    """
    asked, cuts = config.tensor_parallel, {"tp": size, "fsdp2_tp": local}
    if config.strategy not in cuts:
        if asked not in (None, 1):
            raise UsageError(f"Expected --strategy tp or fsdp2_tp with --tensor_parallel {asked}, got {config.strategy}.")
        return 1
    together = asked or cuts[config.strategy]
    if together < 1 or size % together or (config.strategy == "tp" and together != size):
        wanted = f"{size}" if config.strategy == "tp" else f"a divisor of {size}"
        raise UsageError(
            f"Expected --tensor_parallel to be {wanted}, the number of processes of --strategy {config.strategy}; got {asked}."
        )
    return together


def _rank(local: int) -> int:
    """This process's number among all; Lightning's own children only know theirs on this machine."""
    name = next((name for name in RANKS if name in os.environ), None)
    rank = int(os.environ[name]) if name else 0
    if name in (None, "LOCAL_RANK"):
        rank += local * int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))
    return rank
