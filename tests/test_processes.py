"""How tests end the processes that serve them."""

import os
import subprocess
import sys

from lightning_ft.testing.processes import end

SERVE = [sys.executable, "-S", "-c", "import sys\nprint('ready', flush=True)\nsys.stdin.read()\nsys.exit(3)"]


def served() -> "subprocess.Popen[str]":
    process = subprocess.Popen(SERVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_process_ends_by_itself_as_its_input_ends() -> None:
    process = served()
    end(process)
    assert process.returncode == 3


def test_a_process_ends_though_a_fork_holds_its_input() -> None:
    process = served()
    pause, leave = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(leave)
        os.read(pause, 1)
        os._exit(0)
    try:
        end(process, wait=0.2)
        assert process.returncode == -9
    finally:
        os.close(pause)
        os.close(leave)
        os.waitpid(child, 0)
