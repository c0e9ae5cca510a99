"""The tables of a build while it goes on: in pieces, each of which is whole on disk or not counted."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import sync, write_json
from lightning_ft.data.ledger import Ledger
from lightning_ft.data.table import TableWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lightning_ft.data.badrows import BadRows
    from lightning_ft.data.split import Split
    from lightning_ft.types import Encoded

BLOCK = 2000
"""Rows of a table that are written at a time."""
_PROGRESS = "progress.json"


class Pieces:
    """Tables of a build in pieces, each of which is whole on disk or not counted.

    Args:
        folder: Where they lie while the build goes on.
        ledger: Goes with them, since rows of finished pieces are not encoded again.
        bad: Likewise.
    """

    def __init__(self, folder: Path, ledger: Ledger, bad: BadRows) -> None:
        self.folder, self.ledger, self.bad = folder, ledger, bad
        self.rows = 0
        """Rows in the piece that is being written."""
        self._done = 0
        self._files: dict[str, int] = {}
        self._waiting: dict[Split, list[tuple[Encoded, Mapping[str, Any] | None]]] = {}
        self._writers: dict[Split, TableWriter] = {}
        self._number = 0

    def resume(self) -> int:
        """The number of rows in whole pieces of a build that was stopped; its ledger and problems are taken over."""
        try:
            found = json.loads((self.folder / _PROGRESS).read_text(encoding="utf-8"))
            whole = all((self.folder / name).stat().st_size == size for name, size in found["files"].items())
        except (OSError, ValueError):
            whole = False
        if not whole:
            shutil.rmtree(self.folder, ignore_errors=True)
            return 0
        self._done, self._files, self._number = found["rows"], found["files"], found["pieces"]
        saved = Ledger.from_dict(found["ledger"])
        self.ledger.sources, self.ledger.lengths, self.ledger.cut_lengths = saved.sources, saved.lengths, saved.cut_lengths
        self.bad.take(found["problems"])
        return self._done

    def add(self, split: Split, item: Encoded, values: Mapping[str, Any] | None) -> None:
        """Append an encoded row."""
        waiting = self._waiting.setdefault(split, [])
        waiting.append((item, values))
        if len(waiting) >= BLOCK:
            self._write(split)

    def _write(self, split: Split) -> None:
        if split not in self._writers:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writers[split] = TableWriter(self.folder / f"{split}-{self._number:05}.arrow")
        waiting = self._waiting.pop(split)
        self._writers[split].write([item for item, _ in waiting], [values for _, values in waiting])

    def finish(self) -> None:
        """Put the piece on disk for good, then the account of it."""
        for split in list(self._waiting):
            self._write(split)
        for split, writer in self._writers.items():
            writer.close()
            path = self.folder / f"{split}-{self._number:05}.arrow"
            sync(path)
            self._files[path.name] = path.stat().st_size
        self._done, self._number = self._done + self.rows, self._number + 1
        self.rows, self._writers = 0, {}
        self.folder.mkdir(parents=True, exist_ok=True)
        account = {"rows": self._done, "pieces": self._number, "files": self._files, "ledger": self.ledger.as_dict()}
        write_json(self.folder / _PROGRESS, {**account, "problems": self.bad.as_list()})

    def move(self, target: Path) -> None:
        """Everything is done: the pieces into the folder that stays, what is left of this one away."""
        for name in self._files:
            (self.folder / name).rename(target / name)
        shutil.rmtree(self.folder, ignore_errors=True)
