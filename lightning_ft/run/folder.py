"""The run folder: its name, its lock, its record, and finding an unfinished one again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import socket
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from lightning_ft import layout
from lightning_ft.atomic import clear_leftovers, write_json, write_text
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.config import TrainingConfig

RECORDED = ("lightning-ft", "torch", "lightning", "transformers", "peft", "tokenizers", "datasets", "torchmetrics", "numpy")
NOT_OF_THE_RESULT = frozenset({
    "resume", "output", "name", "workers", "log_every", "keep_best", "preflight", "verdict_rows", "retention",
    "eval_batch_size", "rank_timeout",
})  # fmt: skip
"""Options that do not change which weights come out, so that two runs that differ in them are the same run."""
_HELD: set[IO[str]] = set()
"""Open lock files of this process."""


@dataclass
class RunFolder:
    """One run's folder, locked while the run is alive."""

    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    """What `run.json` holds."""
    kind: str = "Run folder"
    """What the folder is called where it is in use."""
    _lock: IO[str] | None = None

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / layout.LOG

    def lock(self) -> None:
        """Take the folder for this process; the lock ends with the process, however that ends.

        Raises:
            UsageError: another live process has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.path, str(error.strerror)) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _still_there(file):  # who held it before us deleted it: the lock of a deleted file keeps nobody out
                file.close()
                self.lock()
                return
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UsageError(
                f"{self.kind} '{self.path}' is in use by {owner}; wait for it, or name another with --output."
            ) from None
        except OSError:  # a file system without locks: nobody can be kept out, and nobody need be
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._lock = file
        _HELD.add(file)
        # A folder of the user's without a run keeps its files, but for those that only the start of a run writes.
        for of in ("*",) if (self.path / layout.RECORD).is_file() else (f"{layout.CONFIG}-*", f"{layout.RECORD}-*"):
            clear_leftovers(self.path, of)

    def release(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
            _HELD.discard(self._lock)
            self._lock.close()
            self._lock = None

    def write_config(self, config: TrainingConfig, kept: Mapping[str, Any] | None = None) -> None:
        """`config.yaml`: complete, so that it re-runs the run; with `kept` values in place of the config's."""
        values = {k: v for k, v in (config.as_dict() | dict(kept or {})).items() if k != "resume"}
        write_text(self.path / layout.CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def update(self, **values: Any) -> None:
        """Add to `run.json` and write it; for the process alone that holds the folder."""
        assert self._lock is not None, f"'{self.path}' is not held by this process"
        self.record |= values
        write_json(self.path / layout.RECORD, self.record)


def _let_go() -> None:
    """Forked loader workers outlive a killed run by seconds, and would keep the folder locked for as long."""
    for file in _HELD:
        file.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def _still_there(file: IO[str]) -> bool:
    """Whether the open file is the one that its name stands for now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def config_hash(config: TrainingConfig) -> str:
    """Hash of everything that decides the result of a run."""
    values = {k: v for k, v in config.as_dict().items() if k not in NOT_OF_THE_RESULT}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def create(config: TrainingConfig, task: str, identity: str) -> RunFolder:
    """A new, locked run folder: `--output`, or `runs/<task>_<data>_<n>` with the first free n.

    Args:
        config: The run's options.
        task: The task's name, for the folder's.
        identity: `config_hash` of what the user asked for, by which `--resume auto` finds the run again.

    Raises:
        UsageError: `--output` already holds a run, or is in use, or is a file.
    """
    check_target(config)
    if config.output is not None:
        run = RunFolder(Path(config.output))
        run.lock()
    else:
        stem = config.name or f"{task}_{_slug(config.data[0])}"
        run = _first_free(stem, numbered=config.name is None)
    run.record = {
        "status": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "config_hash": identity,
        "host": socket.gethostname(), "python": platform.python_version(),
        "versions": versions(),
    }  # fmt: skip
    run.write_config(config)
    run.update()
    return run


def check_target(config: TrainingConfig) -> None:
    """Refuse the folder that the run would write while nothing has been done yet.

    Raises:
        UsageError: `--output` already holds a run, or is in use, or is a file, or cannot be written.
    """
    folder = Path(config.output or "runs")
    check_writable(folder)
    if config.output is not None and (folder / layout.CONFIG).is_file() and (folder / layout.RECORD).is_file():
        check_free(folder)
        raise UsageError(
            f"Run folder '{folder}' already holds a run; type --resume {folder} to go on, or name another --output."
        )


def check_free(folder: Path) -> None:
    """Refuse a run folder that a live process has.

    Raises:
        UsageError: one has it.
    """
    run = RunFolder(folder)
    run.lock()
    run.release()


def check_writable(folder: Path) -> None:
    """Refuse to write a folder that is a file, or lies below one, or where nothing can be written.

    Raises:
        UsageError: it is so.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise _unwritable(folder, f"'{there}' is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(folder, f"'{there}' may not be written by this user")


def _unwritable(folder: Path, why: str) -> UsageError:
    return UsageError(f"Expected '{folder}' to be a folder that can be written, but {why}; name another one with --output.")


def versions() -> dict[str, str]:
    """Versions of what decides a result, of those packages that are installed."""
    found = {}
    for name in RECORDED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def new_folder(parent: Path, stem: str, *, numbered: bool = True) -> Path:
    """Make `<stem>_<n>` with the first free n, which nobody else then gets; the first without a number if so wanted.

    Raises:
        UsageError: nothing can be written there.
    """
    n = 1
    while True:
        folder = parent / (f"{stem}_{n}" if numbered or n > 1 else stem)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            n += 1
        except OSError as error:
            raise _unwritable(folder, str(error.strerror)) from None
        else:
            return folder


def _first_free(stem: str, *, numbered: bool) -> RunFolder:
    run = RunFolder(new_folder(Path("runs"), stem, numbered=numbered))
    run.lock()
    return run


def _slug(name: str) -> str:
    stem = Path(name.rstrip("/*")).name.split(".")[0] or "data"
    return re.sub(r"[^A-Za-z0-9-]+", "-", stem).strip("-").lower()[:40] or "data"


def reopen(folder: Path) -> RunFolder:
    """An existing run folder, locked, with its record.

    Raises:
        UsageError: it is in use, or its run.json is unreadable.
    """
    run = RunFolder(folder)
    run.lock()
    try:
        run.record = json.loads((folder / layout.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        run.release()
        raise UsageError(f"Expected '{folder}/run.json' to be a run's record: {error}.") from None
    return run


def unfinished(parent: Path, wanted: str) -> Path | None:
    """The newest run under `parent` with this config hash that has not finished."""
    found = []
    for record in parent.glob("*/run.json"):
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if wanted in (values.get("config_hash"), *values.get("config_hashes", ())) and values.get("status") != "finished":
            found.append((record.stat().st_mtime, record.parent))
    return max(found)[1] if found else None


def options_of(run: Path) -> dict[str, Any]:
    """The options in a run's `config.yaml`.

    Raises:
        UsageError: there is none, or it is no mapping.
    """
    try:
        values = yaml.safe_load((run / layout.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"Expected '{run / 'config.yaml'}' to hold the options of the run; {error}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"Expected '{run / 'config.yaml'}' to hold the options of the run; got {type(values).__name__}.")
    return values


def run_around(name: str) -> Path | None:
    """The run that a name is of: a run folder, its final or best model, or its checkpoints."""
    folder = Path(name).expanduser()
    for place, inside in ((folder, ""), (folder.parent, folder.name), (folder.parent.parent, folder.parent.name)):
        known = inside in ("", layout.FINAL, layout.BEST, layout.CHECKPOINTS) and folder.is_dir()
        if known and all((place / file).is_file() for file in (layout.RECORD, layout.CONFIG)):
            return place
    return None


def record_of(run: Path) -> dict[str, Any]:
    """What `run.json` holds; nothing where it cannot be read."""
    try:
        values = json.loads((run / layout.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def status(run: Path) -> str:
    """What `run.json` says of how the run stands."""
    return str(record_of(run).get("status", "unknown"))
