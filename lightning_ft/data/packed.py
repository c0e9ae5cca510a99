"""Compressed data files: `.gz`, and with the extra `zst` also `.zst`."""

from __future__ import annotations

import gzip
import importlib
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

PACKED = (".gz", ".zst")
"""Suffixes that may stand behind that of a data file."""


def unpacked_name(name: str) -> str:
    """A file's name in lower case, without the suffix of its compression."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in PACKED if name.endswith(suffix)), name)


def unpacked(path: Path, stream: BinaryIO) -> BinaryIO:
    """The content of an open file; a compressed one that ends too early raises when its end is read.

    Raises:
        UsageError: the file is `.zst` and no decoder is installed.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    if name.endswith(".zst"):
        return cast("BinaryIO", _zstd(str(path)).ZstdFile(stream))
    return stream


def damages() -> tuple[type[Exception], ...]:
    """What reading a file that is damaged or cannot be read raises."""
    zstd = _found_zstd()
    return (OSError, EOFError, zlib.error, *([zstd.ZstdError] if zstd else []))


def _found_zstd() -> Any:
    """The module of the standard library (from Python 3.14 on), or its backport; None where there is neither."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _zstd(place: str) -> Any:
    found = _found_zstd()
    if found is None:
        raise UsageError(
            f"{place}: expected a decoder for .zst, got none; type `pip install 'lightning-ft[zst]'`, or unpack the file."
        )
    return found
