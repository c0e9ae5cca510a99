"""Files that commands write: whole or not at all, and a sentence where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import write_text
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable


def write(name: str | Path, text: str) -> None:
    """Write a text file.

    Raises:
        UsageError: there is no folder for it, or the disk takes no more.
    """
    path = Path(name)
    try:
        # Half surrogate pairs of damaged data cannot be written; a replacement character can.
        write_text(path, text.encode("utf-8", "replace").decode())
    except FileNotFoundError:
        raise UsageError(f"Expected a folder for '{path}', but there is none; type mkdir -p '{path.parent}'.") from None
    except OSError as error:
        raise UsageError(
            f"Could not write '{path}': {error.strerror or error}; free some space, or name another file."
        ) from None


def write_rows(name: str | Path, rows: Iterable[Any]) -> None:
    """Write JSON lines, with the same errors."""
    write(name, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
