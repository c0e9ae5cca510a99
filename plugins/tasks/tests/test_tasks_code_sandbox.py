"""Code that means harm, really run in the sandbox: it fails soon and leaves nothing. Without a sandbox nothing runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lightning_ft_tasks.code_metrics import sandbox
from lightning_ft_tasks.code_metrics.sandbox import Limits, SandboxError, run

with sandbox.allow():
    NONE_HERE = sandbox.obstacle()
contained = pytest.mark.skipif(NONE_HERE is not None, reason=f"no sandbox on this machine: {NONE_HERE}")
SHORT = Limits(seconds=2.0)
LIBC = "import ctypes; c = ctypes.CDLL(None, use_errno=True); "
MARK = f"left-behind-{os.getpid()}"


def processes() -> list[str]:
    """Command lines of all processes that carry this run's mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if MARK in line:
                found.append(line)
    return found


def gone() -> bool:
    """Whether within two seconds no process carries the mark; killing takes the kernel a moment."""
    until = time.monotonic() + 2
    while processes():
        if time.monotonic() > until:
            return False
        threading.Event().wait(0.02)
    return True


@contained
def test_code_that_ends_passes_and_code_that_does_not_fails() -> None:
    assert run(["x = 1", "assert x == 1"]).passed
    assert run(["def f(): return 1", "import candidate; assert candidate.f() == 1"]).passed
    assert run(["if __name__ == '__main__': raise ValueError"]).passed
    assert run(["import sys; print('much'); print('more', file=sys.stderr)"]).passed, "what is printed is no verdict"
    dataclass = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1) == A(1)"
    assert run([f"from __future__ import annotations\n{dataclass}"]).passed
    failed = run(["x = 1", "assert x == 2, 'not two'"])
    assert (failed.passed, failed.reason) == (False, "AssertionError: not two")


@contained
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "ended before its last line"),
        ("print('started'); import os; os.write(1, b'started'); os._exit(0)", "started"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("input()", "EOFError: EOF when reading a line"),
        ("import ctypes; ctypes.string_at(0)", "ended before its last line"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        # memory, files, processes, output
        ("x = []\nwhile True: x.append(bytearray(10 << 20))", "MemoryError"),
        ("x = bytearray(10 << 30)", "MemoryError"),
        ("f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError: [Errno 27] File too large"),
        ("for i in range(99): open(f'/tmp/{i}', 'wb').write(bytes(9 << 20))", "OSError: [Errno 28] No space left on device"),
        ("x = [open('/dev/null') for _ in range(99)]", "OSError: [Errno 24] Too many open files: '/dev/null'"),
        ("while True: print('x' * 999)", "more than 1048576 bytes of output"),
        ("import os\nwhile True: os.write(2, b'x' * 999)", "more than 1048576 bytes of output"),
        # time
        ("import time; time.sleep(999)", "more than 2 s"),
        ("while True: pass", "more than 2 s"),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "more than 2 s"),
        ("import os, time; os.close(1); os.close(2); os.closerange(3, 99); time.sleep(999)", "more than 2 s"),
        ("import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, lambda *_: 0)\n    except OSError: pass\n"
         "while True: time.sleep(1)", "more than 2 s"),
        # the machine's files
        ("open('/etc/passwd')", "FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd'"),
        ("open('/proc/self/environ')", "FileNotFoundError: [Errno 2] No such file or directory: '/proc/self/environ'"),
        ("open('/usr/bin/x', 'w')", "OSError: [Errno 30] Read-only file system: '/usr/bin/x'"),
        ("open('/x', 'w')", "OSError: [Errno 30] Read-only file system: '/x'"),
        ("open('/dev/shm/x', 'w')", "OSError: [Errno 30] Read-only file system: '/dev/shm/x'"),
        ("import os; os.chown('/tmp', 0, 0)", "OSError: [Errno 22] Invalid argument: '/tmp'"),
        # the network, and ways to more rights
        ("import socket; socket.create_connection(('192.0.2.1', 80), 9)", "OSError: [Errno 101] Network is unreachable"),
        ("import socket; socket.gethostbyname('a.test')", "socket.gaierror: [Errno -3] Temporary failure in name resolution"),
        (f"{LIBC}assert not c.unshare(1 << 28), ctypes.get_errno()", "AssertionError: 28"),
        (f"{LIBC}assert not c.mount(b't', b'/tmp', b'tmpfs', 0, 0), ctypes.get_errno()", "AssertionError: 1"),
    ],
)  # fmt: skip
def test_harm_is_contained_and_counts_as_failed(code: str, reason: str) -> None:
    started = time.monotonic()
    outcome = run([code], SHORT if reason == "more than 2 s" else Limits())
    assert (outcome.passed, outcome.reason) == (False, reason)
    assert time.monotonic() - started < 9


@contained
def test_endless_forks_come_to_an_end() -> None:
    """Which of the processes says what is a matter of chance."""
    started = time.monotonic()
    assert not run(["import os\nwhile True: os.fork()"]).passed
    assert time.monotonic() - started < 9
    fork = "    while n < 99:\n        if os.fork() == 0: time.sleep(99)\n        n += 1\n"
    assert run([f"import os, time\nn = 0\ntry:\n{fork}except OSError: pass\nassert 0 < n < 16, n"]) == sandbox.Outcome(True)


@contained
def test_the_home_folder_and_the_environment_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("word")
    monkeypatch.setenv("SECRET", "word")
    files = [str(secret), str(Path.home() / ".bashrc"), "/etc/hostname", str(Path.home() / ".ssh"), "/var/log", __file__]
    seen = f"import os\nassert 'SECRET' not in os.environ\nassert not [f for f in {files} if os.path.exists(f)]"
    assert run([seen]) == sandbox.Outcome(True)
    assert run(["import os; assert os.getuid() == 65534 and os.getcwd() == '/tmp' and os.listdir() == []"]).passed
    assert run(["open('/tmp/kept', 'w')"]).passed
    assert not Path("/tmp/kept").exists()
    assert run(["import os; assert not os.listdir('/tmp')"]).passed, "nothing is left for the next one"


@contained
def test_a_server_of_this_machine_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        outcome = run([f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"])
        assert outcome.reason == "ConnectionRefusedError: [Errno 111] Connection refused"
        with pytest.raises(TimeoutError):
            server.accept()


@contained
@pytest.mark.parametrize("end", ["", "raise ValueError", "time.sleep(999)"], ids=["passed", "failed", "timeout"])
def test_no_process_is_left(end: str) -> None:
    daemon = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(999)', '{MARK}'])\n    os._exit(0)\n"
        "os.wait()\ntime.sleep(0.3)\n"
    )
    assert run([daemon + end], SHORT).passed == (end == "")
    assert gone(), processes()


@contained
def test_a_mark_is_found_while_its_process_runs() -> None:
    """The test above could not fail if it looked in the wrong place."""
    with subprocess.Popen([sys.executable, "-c", "input()", MARK], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 10  # it takes a moment to begin
        while not processes():
            assert time.monotonic() < until
        process.kill()
    assert gone()


@contained
def test_its_parent_and_others_cannot_be_killed() -> None:
    kill = "import os\nfor p in (os.getppid(), 1, 2, -1, 0):\n    try: os.kill(p, 9)\n    except OSError: pass\n"
    assert run([f"{kill}raise ValueError"], SHORT).reason in ("ValueError", "ended before its last line")
    assert run(["x = 1"]).passed


@contained
def test_a_fork_that_comes_to_the_end_says_nothing() -> None:
    assert run(["import os\nif os.fork(): os.wait()"]).passed
    assert not run(["import os\nif os.fork(): os.wait(); raise ValueError"]).passed


def test_nothing_runs_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sandbox.PERMISSION, raising=False)
    said = sandbox.obstacle()
    assert said is not None
    assert said.startswith("expected permission to run code that a model wrote; type --allow-code-execution")
    with sandbox.allow():
        assert sandbox.obstacle() == NONE_HERE
    assert sandbox.obstacle() == said
    monkeypatch.setenv(sandbox.PERMISSION, "0")
    assert sandbox.obstacle() == said
    monkeypatch.setenv(sandbox.PERMISSION, "1")
    assert sandbox.obstacle() == NONE_HERE


def test_without_a_sandbox_code_is_refused_whatever_is_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bwrap"
    monkeypatch.setattr(sandbox, "SEARCHED", str(tmp_path))
    with sandbox.allow():
        assert sandbox.obstacle() == (
            "expected bubblewrap to run generated code in, got no program bwrap; type `apt install bubblewrap` or the like"
        )
        program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setattr(sandbox, "SEARCHED", f"{tmp_path}:/usr/bin:/bin")
        assert sandbox.obstacle() == (
            f"expected {program} (0.8 or newer) to make a sandbox for generated code, got"
            " 'bwrap: No permissions to create new namespace'; permit user namespaces, or measure on a machine that has them"
        )
        with pytest.raises(SandboxError, match="No permissions to create new namespace"):
            run(["x = 1"])
        monkeypatch.setattr(sys, "platform", "darwin")
        assert sandbox.obstacle() == "expected Linux and bubblewrap to run generated code in, got darwin; measure it on Linux"


@contained
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_another_user_than_root_has_one_too() -> None:
    """A Python of the system, as nobody: the same sandbox without the step that takes root's rights."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no Python of the system that another user may read")
    package = Path(sandbox.__file__).parent
    code = (
        "import sys, types\n"
        "for name in ('lightning_ft', 'lightning_ft.errors', 'lightning_ft_tasks', 'lightning_ft_tasks.code_metrics'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules['lightning_ft.errors'].LightningFTError = Exception\n"
        "sys.modules['lightning_ft_tasks.code_metrics'].__path__ = [sys.argv[1]]\n"
        "from lightning_ft_tasks.code_metrics import sandbox\n"
        "assert sandbox.run(['x = 1']).passed\n"
        "print(sandbox.run(['open(\"/etc/passwd\")']).reason)\n"
    )
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", python, "-B", "-c", code, str(package)]
    done = subprocess.run(as_nobody, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    if "Permission denied" in done.stderr or "No module named 'lightning_ft_tasks.code_metrics.sandbox'" in done.stderr:
        pytest.skip("another user may not read this repository")
    assert done.stdout == "FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd'\n", done.stderr


@contained
def test_an_answer_that_replaces_what_runs_code_does_not_pass_its_tests() -> None:
    for name in ("exec", "compile"):
        assert not run([f"import builtins\nbuiltins.{name} = lambda *a, **k: None", "assert False"]).passed
