"""Which process is gone, found out by those that are left when they cannot talk any more."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as L
import torch

SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "tcpstore", "broken pipe")
"""Words of errors that are about talking to other processes, in lower case."""


def patience(timeout: float) -> float:
    """Seconds, of those after which a silent process is taken for lost, in which all that are left come to ask the others."""
    return min(20.0, timeout / 2)


class Ranks(L.Callback):
    """Has ready, from the first step on, connections over which nothing else goes.

    Args:
        patience: Seconds in which every process that is left asks.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._group: Any = None
        self._size = 1
        self._sent: list[Any] = []
        """Messages on their way, to be kept until they have arrived, or for ever."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Connect, all processes together."""
        if trainer.world_size > 1 and self._group is None:
            self._group, self._size = torch.distributed.new_group(backend="gloo"), trainer.world_size

    def lost(self, error: BaseException) -> str | None:
        """A sentence that names the processes that do not answer; None where the error is about something else.

        Every process that is left has to ask, within its patience.
        """
        said = " ".join(str(error).split())
        if self._group is None or not isinstance(error, RuntimeError) or not any(sign in said.lower() for sign in SIGNS):
            return None
        numbers = self._silent()
        who = f"Rank {', '.join(map(str, numbers))}" if numbers else "A rank"
        return f"{who} of {self._size} does not answer any more ({said[:160]}); the run has stopped."

    def _silent(self) -> list[int]:
        """The ranks from which nothing comes. gloo's own barrier that tells has no end where rank 0 is gone."""
        mine = torch.distributed.get_rank()
        others = [rank for rank in range(self._size) if rank != mine]
        end = time.monotonic() + self._patience
        words, silent = [torch.zeros(1) for _ in range(self._size)], []
        awaited: dict[int, Any] = {}
        for rank in others:
            with contextlib.suppress(RuntimeError):
                self._sent.append(torch.distributed.isend(words[mine], rank, self._group))
                awaited[rank] = torch.distributed.irecv(words[rank], rank, self._group)
        for rank in others:
            try:
                awaited[rank].wait(timedelta(seconds=max(0.1, end - time.monotonic())))
            except (KeyError, RuntimeError):
                silent.append(rank)
        return silent
