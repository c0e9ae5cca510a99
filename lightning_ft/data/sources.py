"""From the files that the user named to rows, each with the place it came from; nothing unreadable goes unnoticed."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.data.formats import READERS
from lightning_ft.data.hub import hub_files, is_hub_id
from lightning_ft.data.packed import PACKED, damages, unpacked, unpacked_name
from lightning_ft.data.split import split_name
from lightning_ft.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.data.badrows import BadRows
    from lightning_ft.data.split import Split
    from lightning_ft.types import Row

SUFFIXES = tuple(READERS)
"""Suffixes of data files, each with an optional one of `PACKED` behind it."""
NO_DATA = re.compile(
    r"\..*|(readme|licen[cs]e|notice|changelog|citation)([-_.].*)?\.(txt|md)|cache-.*\.arrow"
    r"|lost\+found|(dataset_infos?|dataset_dict|state|report)\.json|.*\.(quarantine|changes|review)\.jsonl",
    re.IGNORECASE,
)
"""Names in a folder that are no data: hidden files, papers about it, and what `datasets` and a cleaning leave beside it."""


def suffix_of(path: Path) -> str:
    """The suffix that decides how a file is read (`.jsonl` for `x.jsonl.gz`); empty if there is no reader for it."""
    name = unpacked_name(path.name)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def expand(paths: Sequence[str]) -> list[Path]:
    """The data files behind files, globs, folders and hub ids, in order; a file that is named twice is read once.

    A folder stands for the data files in it and below it, sorted, without those whose names match `NO_DATA`.

    Raises:
        DataError: a path is missing, a glob matches nothing, a folder holds no data, a suffix is unknown, or a dataset of
            the hub cannot be had.
    """
    if not paths:
        raise UsageError("Expected --data to name at least one file; got none.")
    found: dict[Path, Path] = {}
    for name in paths:
        for path in _expand_one(name):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand_one(name: str) -> list[Path]:
    if not name.strip():
        raise UsageError("Expected the name of a file, a glob or a folder, got an empty one.")
    return [_readable(path) for path in _named(name)]


def _readable(path: Path) -> Path:
    """The path of a plain file: a pipe would be waited for, and can be read only once."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # it could stand in no ledger, report or message
        raise DataError(f"Expected names of files in UTF-8, got {str(path)!a}; rename it.") from None
    if path.is_file():
        if not os.access(path, os.R_OK):
            raise DataError(f"{path}: expected a file that can be read, got one that this user may not; change its rights.")
        return path
    what = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a pipe, a device or a folder"
    raise DataError(f"{path}: expected a file, got {what}; take it out, or copy its content into a file.")


def _named(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        below = (Path(folder) / file for folder, file in _below(path))
        files = sorted(p for p in below if suffix_of(p) and not any(map(NO_DATA.fullmatch, p.relative_to(path).parts)))
        if not files:
            raise DataError(f"{name}: expected a folder with data files ({' '.join(SUFFIXES)}), got none in it; name a file.")
        return files
    if path.exists():
        if not suffix_of(path):
            raise DataError(
                f"{name}: expected a data file ({' '.join(SUFFIXES)}, each also with {' or '.join(PACKED)}), got the suffix"
                f" '{path.suffix}'; convert the file, for example to .jsonl."
            )
        return [path]
    if glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if suffix_of(match)]
        odd = next((m for m in matches if m.is_file() and not suffix_of(m) and not NO_DATA.fullmatch(m.name)), None)
        if files and odd is not None:
            raise DataError(
                f"{name}: expected data files ({' '.join(SUFFIXES)}, each also with {' or '.join(PACKED)}), got '{odd}' among "
                "those that match; convert it, or take a narrower pattern."
            )
        if not files:
            raise DataError(f"{name}: expected data files that match the pattern, got none; try the pattern with `ls`.")
        return files
    if path.is_symlink():
        return [path]  # it leads nowhere, which is told where files are opened
    if is_hub_id(name) and not suffix_of(path):
        return list(hub_files(name))
    if not path.parent.is_dir():
        raise DataError(f"{name}: expected a file or folder, but there is no folder '{path.parent}'; check the path.")
    hint = did_you_mean(path.name, [sibling.name for sibling in path.parent.iterdir()])
    raise DataError(f"{name}: expected a file or folder, got nothing of that name; check the path.{hint}")


def _below(path: Path) -> Iterator[tuple[str, str]]:
    """Folder and name of every file in a folder and below it, through links, too.

    Raises:
        DataError: a folder cannot be read, or a link leads back to one that it lies in.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: expected a folder that can be read, got: {error.strerror}; take it out.") from None

    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not NO_DATA.fullmatch(name)]
        above = {one.resolve() for one in (Path(folder), *Path(folder).absolute().parents)}
        for name in folders:
            inner = Path(folder, name)
            if inner.is_symlink() and inner.resolve() in above:
                raise DataError(f"{inner}: expected a folder, got a link to one that it lies in; take it out.")
        yield from ((folder, file) for file in files)


def splits_by_name(paths: Sequence[Path]) -> dict[Path, Split]:
    """The split of each file as `split_of_name` has it.

    Empty unless every file is named so and there are several splits: one `train.csv` alone says nothing.
    """
    splits = {path: split for path in paths if (split := split_of_name(path)) is not None}
    return splits if len(splits) == len(set(paths)) and len(set(splits.values())) > 1 else {}


def split_of_name(path: Path) -> Split | None:
    """The split after which a file or its folder is named (`test.jsonl`, `train-00000.parquet`, `dev/a.csv`)."""
    return split_name(re.split(r"[-_.]", path.name)[0]) or split_name(path.parent.name)


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, before: tuple[int, int]) -> None:
    """Refuse a file that was written while it was read.

    Raises:
        DataError: its `stamp` is another than before.
    """
    if stamp(path) != before:
        raise DataError(
            f"{path}: expected the file to stay as it is while it is read, got another size or time; start again when it is "
            "complete."
        )


def sample_digest(path: Path) -> str:
    """A hash of a file's size and of the MiB at either end of it, for files that are too large to be read for it."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        ends = [stream.read(2**20) for place in (0, max(0, size - 2**20)) if stream.seek(place) == place]
    return f"sampled:{hashlib.sha256(b'%d:' % size + b''.join(ends)).hexdigest()}"


def read_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """The rows of one file; what cannot be read goes to `bad`, with its place and the reason.

    `Row.line` is the line (the first of a record) in .jsonl, .csv, .tsv and of samples in text, else the record's number.

    * .jsonl .ndjson: an object per line; blank lines are passed over.
    * .json: a list of objects; an object of id -> row (adds the column `id` where it is missing); an object of split ->
      rows as `{"train": [...], "oos_val": [...]}` (sets the column `split`; a row `["text", "label"]` gets these
      columns); `{"data": [...]}`; or objects one below the other as in .jsonl.
    * .csv .tsv: a header, then as many fields as it has; all values are text.
    * .parquet, .arrow: with pyarrow.
    * .txt .md: raw text, a row `{"text": ...}` per section of at most 2048 bytes. Sections end between paragraphs
      (blank lines), within a longer paragraph at the end of a line, within a longer line at a space. A file that was
      written in one of the text templates `alpaca` and `tags` has a row per instruction.

    Text is UTF-8, strictly, with or without byte order mark, with any line ends. Damaged text (invalid UTF-8, NUL, half
    surrogate pairs), a key twice in one object and a record of more than 8 MiB are problems.

    Raises:
        DataError: the file cannot be read on and `bad` has the policy `skip`.
    """
    source, suffix, before, count = str(path), suffix_of(path), bad.count, 0
    reader = READERS.get(suffix)
    if reader is None:
        raise DataError(f"{source}: expected a data file ({' '.join(SUFFIXES)}), got the suffix '{path.suffix}'; convert it.")
    try:
        with path.open("rb") as plain:
            for row in reader(unpacked(path, plain), source, bad):
                count += 1
                yield row
    except damages() as error:
        came = getattr(error, "strerror", None) or str(error)
        bad.fatal(source, 0, f"expected a readable file, got an error after {count:,} rows: {came}; check the file")
    if not count and bad.count == before:
        got = "a file without rows" if path.stat().st_size else "an empty file"
        bad.fatal(source, 0, f"expected at least one row, got {got}; check how it was written")
