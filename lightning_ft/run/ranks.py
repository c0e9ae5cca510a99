"""Which process is gone, found out by those that are left when they cannot talk any more."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch.strategies.launchers import subprocess_script as launcher

if TYPE_CHECKING:
    from lightning_ft.run.folder import RunFolder

SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "tcpstore", "broken pipe")
"""Words of errors that are about talking to other processes, in lower case."""


AFTER = 10
"""Seconds in which processes that have found out who is gone end by themselves."""


def patience(timeout: float) -> float:
    """Seconds, of those after which a silent process is taken for lost, in which all that are left come to ask the others."""
    return min(20.0, timeout / 2)


def leave_time(timeout: float) -> None:
    """Let processes that Lightning started find out by themselves which of them is gone, and say so.

    It would kill all of them within five seconds of the end of one, in the middle of a step, of a save or of the question who
    is silent. Where they are not connected yet, so that nobody can find out, it may.

    Args:
        timeout: Seconds after which a silent process is taken for lost.
    """

    class Observer(subprocess_script._ChildProcessObserver):
        def _terminate_all(self) -> None:
            if torch.distributed.is_initialized():
                time.sleep(timeout + AFTER)
            super()._terminate_all()

    launching: Any = launcher
    subprocess_script._logger.setLevel(logging.WARNING)  # it would say that it kills them now
    launching._launch_process_observer = lambda children: Observer(os.getpid(), children).start()


class Ranks(L.Callback):
    """Has ready, from the first step on, connections over which nothing else goes.

    Args:
        patience: Seconds in which every process that is left asks.
        folder: Of the run; where something else than Lightning has started the processes only the first one knows its path.
    """

    def __init__(self, patience: float, folder: RunFolder) -> None:
        self._patience, self._folder = patience, folder
        self._group: Any = None
        self._size = 1
        self._sent: list[Any] = []
        """Messages on their way, to be kept until they have arrived, or for ever."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Connect, all processes together."""
        if trainer.world_size > 1 and self._group is None:
            self._group, self._size = torch.distributed.new_group(backend="gloo"), trainer.world_size
            told = [self._folder.path]
            torch.distributed.broadcast_object_list(told, 0, self._group, torch.device("cpu"))
            self._folder.path = told[0]

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
        words = [torch.zeros(1) for _ in range(self._size)]
        silent: dict[bool, list[int]] = {True: [], False: []}  # with a connection that broke, or only late
        awaited: dict[int, Any] = {}
        for rank in others:
            with contextlib.suppress(RuntimeError):
                self._sent.append(torch.distributed.isend(words[mine], rank, self._group))
                awaited[rank] = torch.distributed.irecv(words[rank], rank, self._group)
        for rank in others:
            try:
                awaited[rank].wait(timedelta(seconds=max(0.1, end - time.monotonic())))
            except KeyError:
                silent[True].append(rank)
            except RuntimeError as error:
                # The first that runs out of time takes the other connections with it: "timeout caused pair closure".
                late = any(word in str(error).lower() for word in ("timed out", "timeout"))
                silent[not late].append(rank)
        # Who is late may be waiting for the one that is gone, and not have noticed yet.
        return silent[True] or silent[False]
