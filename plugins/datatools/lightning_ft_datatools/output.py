"""Files that commands write: whole or not at all, and a sentence where they cannot be."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import append_lines, strict, write_text
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def write(name: str | Path, text: str) -> None:
    """Write a text file; a link stays one, and what is no file (a device, say) is written to.

    Raises:
        UsageError: there is no folder for it, or the disk takes no more.
    """
    with _explained(Path(name).resolve()) as path:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", errors="replace")
            return
        # Half surrogate pairs of damaged data cannot be written; a replacement character can.
        write_text(path, text.encode("utf-8", "replace").decode())


def write_rows(name: str | Path, rows: Iterable[Any]) -> None:
    """Write JSON lines, with the same errors."""
    lines = (json.dumps(strict(row), ensure_ascii=False, default=str, allow_nan=False) for row in rows)
    write(name, "".join(f"{line}\n" for line in lines))


def append(name: str | Path, text: str) -> None:
    """Put whole lines behind those that a file has; they are on the disk when this returns. The same errors."""
    with _explained(Path(name)) as path:
        append_lines(path, text)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[Path]:
    try:
        yield path
    except FileNotFoundError:
        raise UsageError(f"Expected a folder for '{path}', but there is none; type mkdir -p '{path.parent}'.") from None
    except OSError as error:
        raise UsageError(
            f"Could not write '{path}': {error.strerror or error}; free some space, or name another file."
        ) from None
