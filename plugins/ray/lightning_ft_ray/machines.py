"""The machines of a cluster, how many workers they hold, and what each worker gets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.config import TrainingConfig


@dataclass(frozen=True)
class Machine:
    """One machine and what Ray may hand out there."""

    node: str
    """Ray's id of it."""
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Group:
    """The workers of a run."""

    workers: int
    cpus: float
    """CPUs of each."""
    gpu: bool
    """Whether each has a GPU."""

    @property
    def resources(self) -> dict[str, float]:
        """As Ray's ScalingConfig takes them for one worker."""
        return {"CPU": self.cpus, **({"GPU": 1.0} if self.gpu else {})}


def room(machines: Sequence[Machine], cpus: float, *, gpu: bool) -> int:
    """How many workers of so many CPUs (and a GPU each) the machines hold; none is spread over two machines."""
    return sum(
        min(math.floor(m.cpus / cpus + 1e-9), math.floor(m.gpus) if gpu else math.floor(m.cpus / cpus + 1e-9)) for m in machines
    )


def group_of(
    config: TrainingConfig, machines: Sequence[Machine], *, workers: int | None, cpus: float | None, use_gpu: bool | None
) -> Group:
    """The workers that a run gets.

    Args:
        config: The run's options; `devices` and `trainer.num_nodes` count where `workers` is None.
        machines: What there is.
        workers: Their number; None: as the config says, and where it says auto every GPU, or a worker for each machine.
        cpus: CPUs of each; None: as many as all can have alike.
        use_gpu: Whether each has a GPU; None: where the cluster has any.

    Raises:
        UsageError: the machines do not hold them.
    """
    gpus = sum(math.floor(m.gpus) for m in machines)
    if use_gpu and not gpus:
        raise UsageError(f"Expected a GPU in the cluster for --use_gpu true, got {_words(machines)}; type --use_gpu false.")
    gpu = bool(gpus) if use_gpu is None else use_gpu
    if workers is None:
        workers = _of_devices(config, gpus if gpu else len(machines))
    given = cpus is not None
    if cpus is None:
        most = math.floor(max((m.cpus for m in machines), default=0))
        cpus = next((c for c in range(most, 0, -1) if room(machines, c, gpu=gpu) >= workers), 1)
    hold = room(machines, cpus, gpu=gpu)
    if hold < workers:
        each = f"{cpus:g} CPU{'s' * (cpus != 1)}{' and a GPU' * gpu} each"
        mend = "" if given or gpu else "; type --cpus_per_worker 0.5 to let two share one"
        raise UsageError(f"Expected at most {hold} workers of {each} on {_words(machines)}; got {workers}{mend}.")
    return Group(workers, cpus, gpu)


def _of_devices(config: TrainingConfig, auto: int) -> int:
    """The number of processes that `fit` would have; `auto` where it would look at its own machine."""
    from lightning_ft.run.world import world

    found = world(config)
    if isinstance(found.devices, str):
        raise UsageError(
            f"Expected --devices to be auto or a number, as Ray chooses which GPUs they are; got {config.devices!r}."
        )
    return auto if config.devices == "auto" else found.size


def _words(machines: Sequence[Machine]) -> str:
    cpus, gpus = sum(m.cpus for m in machines), sum(m.gpus for m in machines)
    several = f"{len(machines)} machines" if len(machines) != 1 else "1 machine"
    return f"a cluster of {cpus:g} CPUs and {gpus:g} GPUs on {several}"
