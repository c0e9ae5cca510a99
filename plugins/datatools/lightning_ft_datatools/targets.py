"""What a command is going to write, looked at before it does any work: nothing that is read may be among it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.data.sources import expand
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_target(name: str | Path, names: Sequence[str], flag: str = "--output") -> Path:
    """A file to write.

    Args:
        name: as it was typed.
        names: files, globs and folders that are read.
        flag: that named it.

    Raises:
        UsageError: no name, a folder, or a file that is read.
    """
    path = Path(name)
    if not str(name).strip() or path.is_dir():
        raise UsageError(f"Expected {flag} to name a file, got '{name}'; type a new name.")
    if path.resolve() in {read.resolve() for read in expand(names)}:
        raise UsageError(f"Expected {flag} to name a new file, got '{path}', which is read; type another name.")
    return path


def check_parent(path: Path) -> None:
    """Say before any work is done that there is no folder for a file.

    Raises:
        UsageError: there is none.
    """
    if not path.parent.is_dir():
        raise UsageError(f"Expected a folder for '{path}', but there is none; type mkdir -p '{path.parent}'.")


def check_rows(name: str, names: Sequence[str], flag: str = "--output", beside: Sequence[str] = ()) -> Path:
    """A .jsonl file to write, and others beside it.

    Args:
        name: as it was typed.
        names: files, globs and folders that are read.
        flag: that named it.
        beside: endings of the others, instead of `.jsonl`.

    Raises:
        UsageError: as `check_target`; also another suffix, a file beside it that is read, or no folder for it.
    """
    path = check_target(name, names, flag)
    if path.suffix != ".jsonl":
        raise UsageError(f"Expected {flag} to name a .jsonl file, got '{path}'; type {path.with_suffix('.jsonl')}.")
    read = {file.resolve() for file in expand(names)}
    for other in (path.with_suffix(ending) for ending in beside):
        if other.resolve() in read:
            raise UsageError(
                f"Expected {flag} to name a new file, got '{path}', beside which '{other}' is read and would be written; type"
                " another name."
            )
    check_parent(path)
    return path


def check_folder(name: str, names: Sequence[str], files: Sequence[str]) -> Path:
    """A folder to write to, made where it is missing.

    Args:
        name: as it was typed.
        names: files, globs and folders that are read.
        files: what will be written to the folder.

    Raises:
        UsageError: no name, no folder, one that cannot be made, or a file in it that is read.
    """
    folder = Path(name)
    for file in files if name.strip() else ():
        check_target(folder / file, names)
    try:
        if not name.strip():
            raise FileExistsError
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"Expected --output to name a folder, got '{name}'; type another name.") from None
    except OSError as error:
        raise UsageError(f"Could not make the folder '{name}': {error.strerror}; name another one.") from None
    return folder
