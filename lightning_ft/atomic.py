"""Folders and files that are either whole or not there, also when the power fails in between."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from lightning_ft import layout
from lightning_ft.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
ASIDE = f"{TEMPORARY}old-"
REFUSED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})
"""What a disk answers that takes no more."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2: paths are as open() takes them; swap the two."""


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well; else nothing changes.

    Everything is synced to disk, then a manifest with sizes and SHA-256 hashes, then the rename: a folder without a
    valid manifest is no checkpoint, and an older one stays until the new one is in place.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _write_manifest(temporary)
        _replace(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno not in REFUSED:
            raise
        raise not_written(target, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def not_written(target: Path, error: Exception) -> TrainingError:
    """What to tell when the disk is full or takes no more for another reason."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return TrainingError(
        f"Could not write '{target}': {why}; what was saved before is untouched. Free some space and type --resume."
    )


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": 1, "files": files}, indent=1), encoding="utf-8")
    sync(manifest)
    for place in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(place)


def _replace(temporary: Path, target: Path) -> None:
    """Rename into place. A rename cannot replace a full folder: the two are swapped, or the old one steps aside first."""
    if not target.exists():
        temporary.rename(target)
        sync(target.parent)
        return
    aside = target.parent / f"{ASIDE}{target.name}-{os.getpid()}"
    if _swap(temporary, target):
        aside = temporary
    else:
        target.rename(aside)
        temporary.rename(target)
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in a single step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def broken(folder: Path) -> str | None:
    """Why the folder is not whole, or None if every file is there with the size and hash of the manifest."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in dict(listed).items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is unreadable"
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, expected {size}"
            if sha256(path) != digest:
                return f"{name} has another hash than when it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside, sync it, and rename it into place."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def append_lines(path: Path, text: str) -> None:
    """Put lines behind those of a file, which is made where there is none; they are on the disk when this returns.

    Behind a line that a kill cut off they begin on a line of their own.

    Args:
        path: The file.
        text: Whole lines, each with its end.

    Raises:
        OSError: the disk takes no more.
    """
    new = not path.exists()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else f"\n{text}"
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync(path.parent)


def clear_leftovers(folder: Path, of: str = "*") -> None:
    """Remove what killed processes left half written; call it under a lock that its writers hold.

    Args:
        folder: A run folder, or where folders of encoded rows stand.
        of: A pattern of the names that were being written.
    """
    for path in (*folder.glob(f"{TEMPORARY}{of}"), *(folder / layout.CHECKPOINTS).glob(f"{TEMPORARY}{of}")):
        home = path.with_name(path.name.removeprefix(ASIDE).rpartition("-")[0])
        if path.name.startswith(ASIDE) and not home.exists():
            path.rename(home)  # it stepped aside for a folder that never came
        else:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[bool]:
    """Within it no other process is in a block of the same lock file; the lock ends with the process.

    Yields:
        Whether it is so: some network file systems have no locks.
    """
    with lock.open("a") as file:
        held = False
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        yield held


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strict(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value
