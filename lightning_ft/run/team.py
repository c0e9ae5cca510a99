"""Work on rows that several processes share, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from lightning_ft.errors import TrainingError
from lightning_ft.run.quiet import quiet_libraries
from lightning_ft.run.world import check_here, world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.config import TrainingConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Processes that each do every n-th row."""

    rank: int = 0
    size: int = 1
    device: str | None = None
    """Where this process's model belongs; None: on the best device there is."""

    @classmethod
    def of(cls, config: TrainingConfig) -> Team:
        """As `devices` or a launcher (torchrun, SLURM) says; with several, all of them are started and connected."""
        found = world(config)
        check_here(found)
        if found.size == 1:
            return cls()
        from lightning.fabric import Fabric

        with quiet_libraries():
            fabric = Fabric(accelerator="auto", devices=found.devices, num_nodes=found.size // found.on_machine, strategy="ddp")
            fabric.launch()
        return cls(fabric.global_rank, fabric.world_size, str(fabric.device))

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """What this process does."""
        return list(items[self.rank :: self.size])

    def gather(self, mine: T) -> list[T] | None:
        """What all processes have, by rank, on the first one; None on the others.

        Raises:
            TrainingError: a process is gone.
        """
        if self.size == 1:
            return [mine]
        found: list[T] | None = [mine] * self.size if self.main else None
        try:
            torch.distributed.gather_object(mine, found)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:160]
            raise TrainingError(f"A process of {self.size} does not answer any more ({said}); nothing was written.") from error
        return found

    def joined(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The items again in their order, from every process's share."""
        total = sum(map(len, shares))
        return [shares[i % self.size][i // self.size] for i in range(total)]
