"""Running code that a model wrote: with permission, in a sandbox of bubblewrap, within limits; otherwise not at all.

The code runs as a user without rights in namespaces of its own: no network, no process but its own, and of the files only
/usr and the running Python's, read-only, and an empty /tmp in memory that goes with it. Nothing of /etc, /home, /root, /proc or
the environment is there. That is a container and not another machine: a fault of the kernel may let code out.

Where that cannot be had (another system than Linux, no bubblewrap, user namespaces forbidden), nothing is run: limits on time
and memory alone would leave the user's files and the network to the code.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lightning_ft.errors import LightningFTError
from lightning_ft_tasks.code_metrics import inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PERMISSION = "LIGHTNING_FT_ALLOW_CODE_EXECUTION"
"""The environment variable that permits it where it is 1."""
SEARCHED = "/usr/local/bin:/usr/bin:/bin"
"""Where programs are looked for."""
_NOBODY = "65534"
_START = 30.0
"""Seconds within which a sandbox has begun, or never will."""
_permitted: ContextVar[bool] = ContextVar("permitted", default=False)


class SandboxError(LightningFTError):
    """The sandbox itself failed, so nothing is known about the code.

    Attributes:
        said: What bubblewrap said.
    """

    def __init__(self, said: str) -> None:
        super().__init__(f"Expected a sandbox to begin within {_START:g} s, got '{said}'.")
        self.said = said


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    seconds: float = 10.0
    """Wall clock; also of processor time for each process, rounded up."""
    memory: int = 512 << 20
    """Bytes of address space of each process."""
    processes: int = 16
    """Processes and threads at once. (Linux before 5.14 counts those of the user outside, too.)"""
    file: int = 16 << 20
    """Bytes of each file written."""
    folder: int = 64 << 20
    """Bytes of all files in /tmp."""
    files: int = 64
    """Open files of each process."""
    output: int = 1 << 20
    """Bytes printed."""

    def as_resources(self) -> dict[str, int]:
        """By the names of the module `resource`."""
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": int(self.seconds) + 1,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_FSIZE": self.file,
            "RLIMIT_NOFILE": self.files,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    passed: bool
    """Whether all of the code ran to its end."""
    reason: str = ""
    """Why not: the limit that was met, or the last line of what was printed."""


@contextlib.contextmanager
def allow() -> Iterator[None]:
    """Permit to run generated code in this context (thread or task)."""
    token = _permitted.set(True)
    try:
        yield
    finally:
        _permitted.reset(token)


def obstacle() -> str | None:
    """Why no generated code may be run here, as a sentence with what to type; None: it may."""
    if not _permitted.get() and os.environ.get(PERMISSION) != "1":
        return f"expected permission to run code that a model wrote; type --allow-code-execution (or set {PERMISSION}=1)"
    if sys.platform != "linux":
        return f"expected Linux and bubblewrap to run generated code in, got {sys.platform}; measure it on Linux"
    program = shutil.which("bwrap", path=SEARCHED)
    if program is None:
        return "expected bubblewrap to run generated code in, got no program bwrap; type `apt install bubblewrap` or the like"
    return _trial(program)


@functools.cache
def _trial(program: str) -> str | None:
    """Why a sandbox cannot be had of the program; None: an empty one was."""
    try:
        run([""])
    except SandboxError as error:
        return (
            f"expected {program} (0.8 or newer) to make a sandbox for generated code, got '{error.said}';"
            " permit user namespaces, or measure on a machine that has them"
        )
    return None


def python_version() -> str:
    """The Python that runs the code, which is the running one."""
    return f"python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"


def run(sources: Sequence[str], limits: Limits | None = None) -> Outcome:
    """Run texts of Python code one after the other in one module, in a sandbox. Asks nobody for permission: see `obstacle`.

    Args:
        sources: the code, say an answer and its tests.
        limits: what it may use; None: the defaults.

    Raises:
        SandboxError: it could not even begin.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    order = {"limits": limits.as_resources(), "sources": list(sources), "token": token}
    about, told = os.pipe()
    with tempfile.TemporaryFile() as given, open(about, "rb", buffering=0) as news, open(told, "wb") as teller:
        given.write(json.dumps(order).encode())
        given.seek(0)
        process = subprocess.Popen(
            _command(limits, told), stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env={"PATH": SEARCHED}, start_new_session=True, pass_fds=(told,),
        )  # fmt: skip
        teller.close()
        try:
            said, printed, limit = _listen(process, limits)
        finally:
            _end(process, news)
    if not said.startswith(inside.STARTED):
        raise SandboxError(_last_line(printed) or limit or "nothing")
    if limit is None and said == inside.STARTED + token.encode():
        return Outcome(True)
    return Outcome(False, limit or _last_line(printed) or "ended before its last line")


def _listen(process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, bytes, str | None]:
    """What comes on standard output and standard error until the process ends, and which limit was met before that."""
    assert process.stdout is not None
    assert process.stderr is not None
    heard = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    out, err = heard
    until, began = time.monotonic() + _START, False
    with selectors.DefaultSelector() as selector:
        for pipe in heard:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < until and sum(map(len, heard.values())) <= limits.output:
            for key, _ in selector.select(until - time.monotonic()):
                chunk = os.read(key.fd, 1 << 16)
                heard[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
            if not began and heard[out]:
                until, began = time.monotonic() + limits.seconds, True
    limit = None
    if sum(map(len, heard.values())) > limits.output:
        limit = f"more than {limits.output} bytes of output"
    else:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            limit = f"more than {limits.seconds:g} s"
    return heard[out], heard[err], limit


def _end(process: subprocess.Popen[bytes], news: IO[bytes]) -> None:
    """Kill what is left of a sandbox.

    With the first process in it, of which bubblewrap tells the number, die all others, and those outside that wait for it end
    by themselves. Were those killed, what they waited for would stay in the process table of a container that collects nothing.
    """
    os.set_blocking(news.fileno(), False)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, ValueError, TypeError):  # there is none, or none yet
            os.kill(json.loads(news.read() or b"")["child-pid"], signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_START)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _last_line(printed: bytes) -> str:
    lines = printed.decode("utf-8", "replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _command(limits: Limits, told: int) -> list[str]:
    """bubblewrap, the running Python in it, and in that the module `inside`; its process number is told on a descriptor."""
    python, running = Path(sys.base_prefix).resolve(), Path(sys.executable).resolve()
    if not running.is_relative_to(python):
        raise SandboxError(f"{running} is not within Python's folder {python}")
    before, at = _without_rights(python) if os.geteuid() == 0 else ([], python)
    systems = [part for name in ("lib", "lib32", "lib64", "bin", "sbin") for part in _like_outside(Path("/", name))]
    return [
        *before,
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session",
        "--as-pid-1", "--info-fd", str(told), "--cap-drop", "ALL", "--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "sandbox",
        "--ro-bind", "/usr", "/usr", *systems, "--ro-bind", str(at), str(python),
        "--dev", "/dev", "--remount-ro", "/dev", "--size", str(limits.folder), "--tmpfs", "/tmp",
        "--remount-ro", "/", "--chdir", "/tmp", "--",
        str(running), "-I", "-S", "-B", "-c", _program(),
    ]  # fmt: skip


def _without_rights(python: Path) -> tuple[list[str], Path]:
    """What root puts before the sandbox to be nobody in it, and where Python's files are then.

    To the kernel root within a user namespace is still root, whose number of processes it does not limit. Nobody, though, might
    not be allowed to go to where Python is, so its folder is shown to it at another place.
    """
    shown = Path("/tmp")
    outer = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(python), str(shown), "--die-with-parent"]
    outer += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--"]
    return [*outer, "setpriv", "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups", "--"], shown


def _like_outside(folder: Path) -> list[str]:
    """A folder of the system as the machine has it: a link into /usr, a folder of its own, or not at all."""
    if folder.is_symlink():
        return ["--symlink", os.readlink(folder), str(folder)]
    return ["--ro-bind", str(folder), str(folder)] if folder.is_dir() else []


@functools.cache
def _program() -> str:
    return Path(inside.__file__).read_text(encoding="utf-8")
