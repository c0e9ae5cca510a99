"""Datasets of the Hugging Face hub as data files: `owner/name`, `owner/name:split` or `owner/name:config:split`.

`datasets` downloads them into its own cache, once, as Arrow files; links to these are named after their splits, so that
everything that holds for a folder of files holds for them.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_ft.cache import cache_root
from lightning_ft.data.split import split_name
from lightning_ft.errors import DataError

NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)((?::[\w.+-]*){0,2})")
"""Owner and name, then a split, or a configuration and a split."""


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file could be that of a dataset; with `:split` it can be nothing else."""
    found = NAME.fullmatch(name)
    return found is not None and (bool(found[2]) or not Path(name).parent.is_dir())


@lru_cache
def hub_files(name: str) -> tuple[Path, ...]:
    """The files of a dataset, each named after its split: downloaded now, or found in the cache of `datasets`.

    Raises:
        DataError: the hub cannot be reached or has no such dataset, configuration or split; or several splits are meant,
            and not all are named as ours are.
    """
    parts = NAME.fullmatch(name)
    assert parts is not None, "is_hub_id said so"
    _, *rest = parts[2].split(":")
    config, split = (rest if len(rest) == 2 else (None, *rest)) if rest else (None, None)
    found = _load(name, parts[1], config or None, split or None)
    unknown = [other for other in found if split_name(other.split("_")[0]) is None]
    if len(found) > 1 and unknown:
        raise DataError(
            f"{name}: expected splits that are named as train, validation or test, got {', '.join(found)}; name the one to"
            f" train on, as {parts[1]}:{f'{config}:' if config else ''}{next(iter(found))}."
        )
    sources = [(split, Path(file["filename"])) for split, data in found.items() for file in data.cache_files]
    key = hashlib.sha256("\0".join(str(path) for _, path in sources).encode()).hexdigest()[:12]
    folder = cache_root() / "hub" / f"{re.sub('[/:]', '--', name)}-{key}"
    return tuple(_linked(folder / f"{split}-{number:05d}.arrow", path) for number, (split, path) in enumerate(sources))


def _load(name: str, dataset: str, config: str | None, split: str | None) -> dict[str, Any]:
    """The dataset's splits."""
    import datasets

    try:
        found = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # whatever a download can raise; the user is to know that it was one
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            why = "the hub has none of that name, or only for those who are logged in (hf auth login)"
        else:
            why = " ".join(str(error).strip().split("\n")[:2]).rstrip(".") or type(error).__name__
        raise DataError(
            f"{name}: expected a file, a folder or a dataset of the Hugging Face hub (owner/name:split or"
            f" owner/name:config:split), got none: {why}."
        ) from error
    return {split: found} if split is not None else dict(found)


def _linked(link: Path, target: Path) -> Path:
    """A link to the file; made under another name first, since other ranks make it at the same time."""
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{link.name}-{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.resolve())
        temporary.replace(link)
    except OSError as error:
        raise DataError(
            f"{link}: expected a folder that can be written, got: {error.strerror}; set LIGHTNING_FT_CACHE."
        ) from None
    return link
