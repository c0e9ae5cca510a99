"""A server of runs: imports everything once, then forks the processes of a command line, which a test may kill anywhere.

Reads one JSON request per line, `{"argv", "folder", "log", "hit", "processes", "short"}`, and answers it with `{"status",
"operations"}`, the status being an exit code or minus a signal: of several processes, which get the variables of torchrun, that
of the first one that failed. `hit` is where a signal comes, as `{place: [n, signal]}`: in the n-th call of a
method or function in `PLACES`, before the n-th `operation` on files in `folder`, or `after` n seconds. `short` is where memory
runs out, as short.py is told it.
"""

import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


PLACES = {
    "micro-batch": ("lightning_ft.module", "FineTuner", "_micro_loss"),
    "clip": ("lightning_ft.module", "FineTuner", "configure_gradient_clipping"),
    "preflight": ("lightning_ft.run.preflight", "Preflight", "_run"),
    "validation": ("lightning_ft.module", "FineTuner", "validation_step"),
    "validated": ("lightning_ft.run.callbacks", "Saver", "on_validation_end"),
    "finish": ("lightning_ft.run.session", "Session", "finish"),
    "verdict": ("lightning_ft.run.session", "Session", "verdict"),
    "best model": ("lightning_ft.run.checkpoint_io", "", "write_best_model"),
}


def count_operations(folder: str, at: int, number: int) -> list[int]:
    """Count what changes files in `folder` from now on, and send the signal just before operation `at`."""
    count = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            return
        if any(isinstance(arg, (str, os.PathLike)) and os.fspath(arg).startswith(folder) for arg in args[:2]):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return count


def hit_in(module: str, owner: str, name: str, at: int, number: int) -> None:
    """Send the signal in call `at` of a method, or of a function where no owner is named."""
    holder = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    original: Callable[..., Any] = getattr(holder, name)
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(holder, name, counted)


def run(request: Mapping[str, Any]) -> None:
    """The body of a forked process; never returns."""
    from lightning_ft.cli import main

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    hits = dict(request["hit"])
    count = count_operations(request["folder"], *hits.pop("operation", (0, 0)))
    if "after" in hits:
        # Nobody listens to this signal: the kernel ends the process wherever it is, as with kill -9.
        signal.setitimer(signal.ITIMER_REAL, hits.pop("after")[0])
    for place, (at, number) in hits.items():
        hit_in(*PLACES[place], at, number)
    if request["short"]:
        importlib.import_module("short").arm(setattr, **request["short"])
    code = main(request["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    Path(request["log"]).with_suffix(".operations").write_text(str(count[0]))
    os._exit(code)


def variables(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of its processes; nothing where there is one process only."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forks"}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank)} | size | meet for rank in range(processes)]


def wait_for(running: set[int]) -> int:
    """Until all have ended; with the first that fails the others are ended, too."""
    first = 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if first == 0 and status:
            first = os.waitstatus_to_exitcode(status)
            for other in running:
                os.kill(other, signal.SIGTERM)
    return first


def serve() -> None:
    """Serve until stdin ends."""
    import lightning.pytorch
    import peft  # noqa: F401  # imported for the forks
    import transformers.models.llama.modeling_llama  # noqa: F401  # as above

    import lightning_ft.engine.loss
    import lightning_ft.module
    import lightning_ft.run.session  # noqa: F401  # as above

    lightning.pytorch.Trainer  # noqa: B018  # resolves lazy imports
    for line in sys.stdin:
        request = json.loads(line)
        running = set()
        for told in variables(request["processes"]):
            pid = os.fork()
            if pid == 0:
                sys.stdin.close()
                os.environ.update(told)
                run(request)
            running.add(pid)
        status = wait_for(running)
        operations = Path(request["log"]).with_suffix(".operations")
        counted = int(operations.read_text()) if operations.exists() else None
        operations.unlink(missing_ok=True)
        print(json.dumps({"status": status, "operations": counted}), flush=True)


if __name__ == "__main__":
    serve()
