"""Two cores for work that needs all that this process has imported: a copy of the process does a part of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

T = TypeVar("T")


def together(jobs: Sequence[Callable[[], T]], done: Callable[[int], None]) -> list[T]:
    """What the jobs return, in their order; the next job is done by whoever is free, this process or its copy.

    What the copy changes in its memory is lost. A job that raises there, or with which it ends, is done again here.

    Args:
        jobs: Their results can be pickled.
        done: Called here with the number of every job that is finished.
    """
    found: dict[int, T] = {}
    with _copy(jobs) if len(jobs) > 1 and _can_copy() else contextlib.nullcontext() as copy:
        for number in range(len(jobs)) if copy is None else iter(copy.take, None):
            found[number] = jobs[number]()
            done(number)
            for other, result in () if copy is None else copy.ready(wait=False):
                found[other] = result
                done(other)
        for other, result in () if copy is None else copy.ready(wait=True):
            found[other] = result
            done(other)
    for number in range(len(jobs)):
        if number not in found:
            found[number] = jobs[number]()
            done(number)
    return [found[number] for number in range(len(jobs))]


def _can_copy() -> bool:
    """Whether there is a second core, and no GPU is in use, which a copy could not use."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types for it
        return False
    return hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1


class _Copy:
    """A forked child that takes jobs until none is left."""

    def __init__(self, jobs: Sequence[Callable[[], Any]]) -> None:
        context = multiprocessing.get_context("fork")
        self._jobs, self._next = jobs, context.Value("i", 0)
        self._inbox, outbox = context.Pipe(duplex=False)
        self.process = context.Process(target=self._work, args=(outbox,), daemon=True)
        self.process.start()
        outbox.close()  # so that the end of the child ends the inbox

    def take(self) -> int | None:
        """The number of a job that nobody has begun."""
        with self._next.get_lock():
            number = self._next.value
            self._next.value += 1
        return number if number < len(self._jobs) else None

    def _work(self, outbox: Connection) -> None:
        torch.set_num_threads(1)  # threads are not copied; OpenMP would wait for them
        while (number := self.take()) is not None:
            with contextlib.suppress(Exception):
                outbox.send_bytes(pickle.dumps((number, self._jobs[number]())))

    def ready(self, *, wait: bool) -> Iterator[tuple[int, Any]]:
        """Numbers and results that the child has sent; with `wait` until it ends."""
        with contextlib.suppress(EOFError, OSError):
            while wait or self._inbox.poll():
                yield pickle.loads(self._inbox.recv_bytes())  # of our own child


@contextlib.contextmanager
def _copy(jobs: Sequence[Callable[[], Any]]) -> Iterator[_Copy]:
    copy = _Copy(jobs)
    try:
        yield copy
    finally:
        copy.process.terminate()
        copy.process.join()
