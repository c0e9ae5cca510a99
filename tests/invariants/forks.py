"""A server of runs: imports everything once, then forks a process per command line, which a test may kill anywhere.

Reads one JSON request per line, `{"argv", "folder", "log", "die"}`; answers `{"pid"}` at once and `{"status", "operations"}`
at the end, the status being an exit code or minus a signal.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def die() -> None:
    """As a power cut: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_operations(folder: str, at: int | None) -> list[int]:
    """Count what changes files in `folder` from now on, and die just before number `at` (1-based)."""
    count = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            return
        if any(isinstance(arg, (str, os.PathLike)) and os.fspath(arg).startswith(folder) for arg in args[:2]):
            count[0] += 1
            if count[0] == at:
                die()

    sys.addaudithook(hook)
    return count


def die_in(owner: type, name: str, at: int) -> None:
    """Die in call number `at` (1-based) of a method."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            die()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def run(request: Mapping[str, Any]) -> None:
    """The body of a forked process; never returns."""
    from lightning_ft.cli import main
    from lightning_ft.module import FineTuner
    from lightning_ft.run.callbacks import Saver

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    wanted: Mapping[str, int] = request["die"]
    for place, (owner, name) in {
        "micro-batch": (FineTuner, "_micro_loss"),
        "clip": (FineTuner, "configure_gradient_clipping"),
        "validation": (FineTuner, "validation_step"),
        "saved": (Saver, "on_validation_end"),
    }.items():
        if place in wanted:
            die_in(owner, name, wanted[place])
    count = count_operations(request["folder"], wanted.get("operation"))
    code = main(request["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    Path(request["log"]).with_suffix(".operations").write_text(str(count[0]))
    os._exit(code)


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
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            run(request)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        operations = Path(request["log"]).with_suffix(".operations")
        counted = int(operations.read_text()) if operations.exists() else None
        operations.unlink(missing_ok=True)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "operations": counted}), flush=True)


if __name__ == "__main__":
    serve()
