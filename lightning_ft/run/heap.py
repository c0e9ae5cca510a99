"""The C library's heap, as a training process wants it: freed memory stays, and does not fall to pieces.

glibc hands large tensors back to the kernel, which has to zero their pages again in the next step, and keeps small ones aside
instead of joining them with their free neighbours, so that a heap which is kept grows holes for some dozens of steps.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

_M_MXFAST, _M_TRIM_THRESHOLD, _M_MMAP_MAX = 1, -1, -4
"""Parameters of mallopt(3)."""
TUNABLES, NO_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count"
"""Read by glibc before anything of ours runs."""
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Of CUDA and of ROCm; one of them is there where a GPU is."""


def keep_heap() -> None:
    """Let glibc keep freed memory for the next step, and join small free pieces with what lies beside them.

    For the whole process, and only where the C library has `mallopt`; training on a CPU asks for it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MXFAST, 0)


def heap_in_use() -> int | None:
    """Bytes that are allocated from the C library's heap; None where it does not tell (anywhere but glibc 2.33 and later)."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if mallinfo is None:
        return None
    # struct mallinfo2 of malloc.h: ten numbers, of which the fifth is in mappings and the eighth in the heap.
    mallinfo.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(f"n{i}", ctypes.c_size_t) for i in range(10)]})
    found = mallinfo()
    return int(found.n4 + found.n7)


def start_again_without_cache(environment: MutableMapping[str, str] = os.environ) -> None:
    """Begin this process anew, as it was called, with glibc's cache of small pieces off, unless it is off, or set by the user.

    For a program that was just started; it does not return then. Each thread has such a cache, out of mallopt(3)'s reach, and
    the pieces in it lie between those that would have to be joined. With a GPU the heap holds no tensors: nothing happens.
    """
    if _wants_no_cache(environment) and sys.orig_argv[1:]:
        environment[TUNABLES] = without_cache(environment)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(environment))


def without_cache(environment: Mapping[str, str]) -> str:
    """What `GLIBC_TUNABLES` has to be for a process that starts with the cache off; the user's own setting of it stays."""
    given = environment.get(TUNABLES)
    return given if given and NO_CACHE in given else ":".join(filter(None, (given, f"{NO_CACHE}=0")))


def _wants_no_cache(environment: Mapping[str, str]) -> bool:
    return (
        platform.libc_ver()[0] == "glibc"
        and NO_CACHE not in environment.get(TUNABLES, "")
        and not any(gpu.exists() for gpu in GPUS)
    )
