"""Lists of words and phrases that metrics look for: files of the package, or the user's."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class WordList:
    """The lines of a list, in small letters, in their order."""

    name: str
    parts: Mapping[str, tuple[str, ...]]
    """The lines below each `[heading]`; those above the first one have an empty heading."""
    digest: str
    """First 8 digits of the SHA-256 of its lines, comments left out."""

    @property
    def signature(self) -> str:
        """Name, number of lines and digest, for whoever wants the same number again."""
        return f"{self.name}:{sum(map(len, self.parts.values()))}:sha256:{self.digest}"


@functools.cache
def packaged(name: str) -> WordList:
    """A list that comes with the package."""
    return _parsed(name, text_of_list(name))


def text_of_list(name: str) -> str:
    """The text of a file in `lists/`, without its comments."""
    return _plain(files(__package__).joinpath("lists", name).read_text(encoding="utf-8"))


def from_file(path: str, variable: str) -> WordList:
    """A user's list.

    Args:
        path: The file.
        variable: The environment variable that named it, for messages.

    Raises:
        UsageError: it cannot be read, or has no line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Expected {variable} to name a UTF-8 text file with one word a line, got '{path}' ({type(error).__name__});"
            " name another, or unset it."
        ) from error
    found = _parsed(Path(path).name, _plain(text))
    if not any(found.parts.values()):
        raise UsageError(f"Expected {variable} to name a file with at least one word, got '{path}', which has none.")
    return found


def _parsed(name: str, text: str) -> WordList:
    parts: dict[str, list[str]] = {"": []}
    heading = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            heading = line[1:-1]
            parts.setdefault(heading, [])
        elif line:
            parts[heading].append(line.casefold())
    kept = {key: tuple(dict.fromkeys(lines)) for key, lines in parts.items()}
    return WordList(name, kept, hashlib.sha256(text.encode()).hexdigest()[:8])


def _plain(text: str) -> str:
    """A list without comments, with characters in the place of their escapes (u and four digits)."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), "\n".join(lines))
