"""How processes that a test talks to come to their end."""

from __future__ import annotations

import contextlib
import subprocess

WAIT = 10.0
"""Seconds that a process gets to end by itself."""


def end(process: subprocess.Popen[str], wait: float = WAIT) -> None:
    """End a process that serves until its input ends; it is killed where it does not hear of that.

    Whatever was forked from the test's process meanwhile, as the workers of a loader that nobody has let go yet, holds the
    other end of this input, too: then it never ends, and waiting for it would be for ever.
    """
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
