"""Runs that are forked from a server, which has imported everything (this file as a script), and broken on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import broken

if TYPE_CHECKING:
    from collections.abc import Callable

FIT = (
    *("--precision", "fp32", "--verdict_rows", "0", "--preflight", "false", "--learning_rate", "0.01", "--batch_size", "4"),
    *("--max_steps", "6", "--eval_every", "2", "--keep_best", "9", "--log_every", "1", "--output", "runs/a"),
)
"""Six steps with a validation and a checkpoint after every second one."""
RUN = Path("runs/a")


# ---- in the forked process: what is broken before the run begins ----------------------------------------------------


def at_call(owner: Any, name: str, at: int, act: Callable[[], object]) -> None:
    """Do something just before call number `at` (1-based) of a function."""
    original = getattr(owner, name)
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def places() -> dict[str, tuple[Any, str]]:
    """Where something may happen to a run."""
    from lightning_ft import atomic
    from lightning_ft.module import FineTuner
    from lightning_ft.run import checkpoint_io, preflight, session

    return {
        "step": (FineTuner, "training_step"),
        "validation": (FineTuner, "validation_step"),
        "preflight": (preflight.Preflight, "_run"),
        "save": (checkpoint_io.FolderCheckpoint, "_save"),  # the one before is written by then, also --save_behind's
        "state": (checkpoint_io, "save_state"),
        "manifest": (atomic, "_write_manifest"),
        "replace": (atomic, "_replace"),
        "remove": (checkpoint_io.FolderCheckpoint, "remove_checkpoint"),
        "finish": (session.Session, "finish"),
    }


def fill(disk: str) -> None:
    """Leave not a byte on a disk."""
    with Path(disk, "ballast").open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def break_run(place: str, at: int, what: str, argument: Any) -> None:
    """Arrange that `what` happens at a place."""
    acts: dict[str, Callable[[], object]] = {
        "signals": lambda: list(map(os.kill, [os.getpid()] * len(argument), argument)),
        "fill": lambda: fill(argument),
        "group": lambda: os.killpg(0, argument),
        "limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (argument, resource.RLIM_INFINITY)),
    }
    if what == "group":
        os.setpgrp()  # or it would be that of the tests
    at_call(*places()[place], at, acts[what])


def serve() -> int:
    """Fork a run for each line of stdin; answer with its process id, then, when asked, with how it ended."""
    import lightning.pytorch
    import peft  # noqa: F401  # imported for the forks
    import transformers.models.llama.modeling_llama  # noqa: F401  # as above

    from lightning_ft.cli import main

    lightning.pytorch.Trainer  # noqa: B018  # resolves lazy imports
    places()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.chdir(request["cwd"])
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if request["fault"]:
                break_run(*request["fault"])
            return main(request["argv"])  # and out of the interpreter, as the command does
        print(pid, flush=True)
    return 0


# ---- in the test's process ------------------------------------------------------------------------------------------


class Runs:
    """Starts runs in the test's folder, and looks at what they left."""

    FIT, RUN = FIT, RUN

    def __init__(self, logs: Path) -> None:
        self.logs, self.number = logs, 0
        environment = {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )

    def _ask(self, request: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def start(self, *argv: object, fault: tuple[Any, ...] = ()) -> tuple[int, Path]:
        """`lightning-ft fit ARGV` in the current folder; `fault`: place, which call, what, its argument."""
        self.number += 1
        log = self.logs / f"{self.number}.txt"
        log.touch()
        request = {"argv": ["fit", *map(str, argv)], "cwd": str(Path.cwd()), "log": str(log), "fault": fault}
        return self._ask(request), log

    def wait(self, started: tuple[int, Path]) -> tuple[int, str]:
        """Exit code (or minus the signal) and all that was said."""
        return self._ask({"wait": started[0]}), started[1].read_text()

    def __call__(self, *argv: object, fault: tuple[Any, ...] = ()) -> tuple[int, str]:
        return self.wait(self.start(*argv, fault=fault))

    def steps(self, run: Path = RUN) -> list[int]:
        """The checkpoints of a run, each of them whole."""
        folders = list((run / "checkpoints").iterdir())
        assert [folder.name for folder in folders if broken(folder)] == []
        return sorted(int(folder.name.rpartition("-")[2]) for folder in folders)

    def status(self, run: Path = RUN) -> str:
        found: str = json.loads((run / "run.json").read_text())["status"]
        return found

    def sentence(self, log: str) -> str:
        """The last line, which is the only one of its kind."""
        assert "Traceback" not in log
        assert log.count("lightning-ft: ") == 1, log
        return log.strip().splitlines()[-1]

    def goes_on(self, *argv: object) -> str:
        """A resumed run comes to its end; what it said."""
        code, log = self(*(argv or ("--resume", RUN)))
        assert code == 0, log
        assert self.status() == "finished"
        assert self.steps() == [2, 4, 6]
        assert not list(RUN.rglob(".tmp-*"))
        written = [json.loads(line)["step"] for line in (RUN / "metrics.jsonl").read_text().splitlines()]
        assert sorted(set(written)) == [1, 2, 3, 4, 5, 6]
        assert written == sorted(written)
        return log


if __name__ == "__main__":
    sys.exit(serve())
