"""SIGINT and SIGTERM outside of training steps: an error with its exit code.

By itself a SIGTERM would end the process without a word and leave `running` in run.json, and Lightning answers Ctrl-C
with exit code 1. While steps run, `callbacks.Saver` has handlers of its own, which let the step end and save.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import RunInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HANDLED = (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ()))
"""SLURM sends the last of them some time before it ends a job, where `--signal=USR1@90` says so."""
_EMBEDDED = 0
"""Stands among the numbers of signals for `deliver`; no signal has it."""
_delivered: dict[int, Callable[[int, Any], None] | None] = {_EMBEDDED: None}


def stop_at_once(number: int, frame: Any = None) -> None:
    """A handler: the run ends where it is.

    Raises:
        RunInterruptedError: always.
    """
    raise RunInterruptedError(
        f"Stopped at once by {signal.Signals(number).name}; what was saved before is untouched, and the same command with "
        "--resume auto goes on from there.",
        number,
    )


def install(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Set the handler of both signals; returns what they had before, for `restore`.

    Outside of the main thread signals are the business of whoever embeds us: there the handler gets what they `deliver`.
    """
    if threading.current_thread() is not threading.main_thread():
        before = dict(_delivered)
        _delivered[_EMBEDDED] = handler
        return before
    return {number: signal.signal(number, handler) for number in HANDLED}


def restore(handlers: dict[int, Any]) -> None:
    """Set back what `install` returned."""
    for number, handler in handlers.items():
        if number == _EMBEDDED:
            _delivered[number] = handler
            continue
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def deliver(number: int) -> bool:
    """Hand a signal to a run outside of the main thread; from any other thread of the process.

    Returns:
        Whether a run was there to take it: it ends its step, saves and stops.

    Raises:
        RunInterruptedError: it is not training at the moment, and whoever embeds it has to end it.
    """
    handler = _delivered[_EMBEDDED]
    if handler is not None:
        handler(number, None)
    return handler is not None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it both signals raise `RunInterruptedError`; also a decorator."""
    before = install(stop_at_once)
    try:
        yield
    finally:
        restore(before)
