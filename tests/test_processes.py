"""How tests end the processes that serve them."""

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


def test_a_process_ends_though_another_one_holds_its_input() -> None:
    process = served()
    assert process.stdin is not None
    holds = [sys.executable, "-S", "-c", "import sys\nsys.stdin.read()"]
    with subprocess.Popen(holds, stdin=subprocess.PIPE, pass_fds=[process.stdin.fileno()]):  # as whatever was forked meanwhile
        end(process, wait=0.2)
        assert process.returncode == -9
