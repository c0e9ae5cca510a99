"""The heap of a training process: kept from step to step, without holes, and begun anew with the variable that takes it."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from lightning_ft import __main__, cli
from lightning_ft.run import heap
from lightning_ft.run.heap import NO_CACHE, TUNABLES, heap_in_use

if TYPE_CHECKING:
    from pathlib import Path

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")


@glibc
def test_a_kept_heap_does_not_fault_the_same_pages_in_again() -> None:
    """Ten times 64 MB after a warm-up, as steps come one after another: fresh mappings would be 16,384 page faults each."""
    code = (
        "import resource, torch\n"
        "from lightning_ft.run.heap import keep_heap\n"
        "keep_heap()\n"
        "make = lambda: torch.ones(16 * 2**20)\n"
        "for _ in range(20): make()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): make()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 5000


def test_heap_in_use_grows_by_what_is_allocated() -> None:
    before = heap_in_use()
    if before is None:
        pytest.skip("the C library does not tell")
    kept = torch.ones(4_000_000)
    grown = (heap_in_use() or 0) - before
    assert 16_000_000 <= grown < 17_000_000
    del kept


HOLES = """
import ctypes
from lightning_ft.run.heap import keep_heap
keep_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
taken = [libc.malloc(size) for small in range(24, 1032, 16) for _ in range(7) for size in (2**20, small)]
for piece in taken:
    libc.free(piece)
before = libc.sbrk(0)
libc.malloc(300 * 2**20)
print((libc.sbrk(0) - before) // 2**20)
"""
"""440 blocks of 1 MiB, each with a small one behind it, are freed: may 300 MiB lie where they were?"""


@glibc
def test_small_pieces_do_not_keep_large_ones_apart() -> None:
    def grown(**environment: str) -> int:
        done = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True, env=environment)
        return int(done.stdout)

    assert grown(**{TUNABLES: f"{NO_CACHE}=0"}) == 0
    assert grown() >= 299  # so that the variable is what it needs


AGAIN = """
import os, sys
from lightning_ft.run.heap import start_again_without_cache
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)
start_again_without_cache()
print("goes on")
"""


@glibc
@pytest.mark.skipif(any(gpu.exists() for gpu in heap.GPUS), reason="with a GPU there is no need")
@pytest.mark.parametrize("given", [None, "glibc.malloc.perturb=0"])
def test_a_program_begins_anew_once(tmp_path: Path, given: str | None) -> None:
    """With the same arguments, and with what the user had set."""
    script = tmp_path / "script.py"
    script.write_text(AGAIN)
    environment = {TUNABLES: given} if given else {}
    done = subprocess.run(
        [sys.executable, script, "a b", "--c"], check=True, capture_output=True, text=True, env=environment
    )  # fmt: skip
    then = f"{given}:{NO_CACHE}=0" if given else f"{NO_CACHE}=0"
    assert done.stdout.splitlines() == [f"{given} ['a b', '--c']", f"{then} ['a b', '--c']", "goes on"]


def test_it_does_not_where_the_user_has_decided_or_a_gpu_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def execve(*args: object) -> None:
        raise AssertionError("began anew")

    monkeypatch.setattr("os.execve", execve)
    heap.start_again_without_cache({TUNABLES: f"{NO_CACHE}=4"})
    monkeypatch.setattr(heap, "GPUS", (tmp_path / "none", tmp_path))
    heap.start_again_without_cache({})


@pytest.mark.parametrize(
    ("words", "times"), [("fit --data x", 1), ("quickstart", 1), ("fit --help", 0), ("evaluate", 0), ("--version", 0), ("", 0)]
)
def test_what_trains_begins_anew(words: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(__main__, "start_again_without_cache", lambda: begun.append(1))
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["lightning-ft", *words.split()])
    assert __main__.main() == 0
    assert len(begun) == times
