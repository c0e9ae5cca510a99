"""Rows of files to encoded tables, in two passes and in bounded memory; a build that was killed goes on at its last piece.

The first pass reads and formats every row, so that whatever is wrong with the data is said before hours of work, and keeps
the few bytes that decide each row's split. The second one encodes. Rows of small files are kept in between, those of large
ones are read and formatted again, which costs a few per cent of what tokenising them does.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections import deque
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import write_json
from lightning_ft.data.alike import alike_rows, finders, prompt_of
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import DETECTED_FROM, task_of
from lightning_ft.data.encode import CHUNK
from lightning_ft.data.ledger import HELD_OUT, NO_SUPERVISED, Ledger
from lightning_ft.data.pieces import BLOCK, Pieces
from lightning_ft.data.rename import Renaming
from lightning_ft.data.shots import Shots
from lightning_ft.data.sources import check_unchanged, read_rows, stamp
from lightning_ft.data.split import SPLITS, Split, Splitter, prompt_key
from lightning_ft.data.unfold import examples_of
from lightning_ft.data.window import keys_of
from lightning_ft.errors import DataError, TrainingError, UsageError, did_you_mean
from lightning_ft.types import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from threading import Event

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.window import Window
    from lightning_ft.registry import Registry
    from lightning_ft.task import Task
    from lightning_ft.types import Encoded, Example, Row

    Parts = list[tuple[Row, Example]]
    _Item = tuple[Row, Example, Split]

PIECE = 40_000
"""Rows after which what is done is put on disk for good."""
KEPT_BYTES = 128 * 2**20
"""Size of the files up to which their rows are kept between the passes; in memory they take some five times as much."""
_UNPACKED = 8  # a guess at how much larger the text of a compressed or columnar file is


@dataclass(frozen=True)
class Place:
    """A file, its split where it has one of its own, and its size and time when its content was hashed."""

    path: Path
    split: Split | None
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path, split: Split | None) -> Place:
        """The file as it is now."""
        return cls(path, split, stamp(path))

    @property
    def bytes(self) -> int:
        """About how large its text is."""
        plain = self.path.suffix in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md")
        return self.stamp[0] * (1 if plain else _UNPACKED)


class Build:
    """One build of encoded tables.

    Args:
        config: The run's options.
        places: The files.
        registry: For the tasks.
        encoder: Tokenizer and template.
        task: The task, or None to detect it by the first rows.
        kinds: Example types that the objective eats.
        shares: Of train, validation and test among rows whose file and `split` column say nothing.
        say: Prints a line.
        window: The part of the training files that is wanted; None: all of them.
        stop: Ends the build when it is set.
        further: Example types that are taken, too, where no task makes one of `kinds` of the rows.
    """

    def __init__(
        self, config: TrainingConfig, places: Sequence[Place], registry: Registry, encoder: Encoder, task: Task | None,
        kinds: tuple[type[Example], ...], shares: Sequence[float], say: Callable[[str], None], window: Window | None = None,
        stop: Event | None = None, further: tuple[type[Example], ...] = (),
    ) -> None:  # fmt: skip
        self.config, self.places, self.registry, self.encoder = config, places, registry, encoder
        self.task, self.kinds, self.shares, self.say = task, kinds, shares, say
        self.window, self.stop, self.further = window, stop, further
        self.ledger = Ledger(max_length=encoder.max_length)
        keep = window is not None or sum(place.bytes for place in places) <= KEPT_BYTES
        self._kept: list[tuple[Row, Parts]] | None = [] if keep else None
        self._splitter = Splitter()
        self._renaming = Renaming(config.columns)
        self._fixed: list[Split | None] = []
        self._shots: Shots | None = None
        self._held_out = frozenset(config.holdout_tasks or ())

    def run(self, folder: Path, work: Path) -> None:
        """Write the tables, the quarantine file (if there is anything to put into it) and facts.json.

        Args:
            folder: Takes what is finished; it has to be on the same disk as `work`.
            work: Takes the pieces; left as it is when the build is stopped, and gone when it is done.
        """
        bad = BadRows(self.config.on_error, folder / "quarantine.jsonl")
        self._survey(bad)
        bad.finish(self._judged_by())
        splits = self._splits()
        if self._shots is not None:
            self._shots.settle(splits)
        pieces = Pieces(work, self.ledger, bad)
        done = pieces.resume()
        if done:
            self.say(f"data: {done:,} of {len(splits):,} rows are encoded already, by a build that was stopped; going on")
        rows = zip(self._good(), splits, strict=False)  # of another number only where a file has changed
        blocks = self._progress(_blocks(itertools.islice(rows, done, None), CHUNK), done, len(splits))
        pending: deque[tuple[list[_Item], int]] = deque()
        for encoded in self.encoder.encode_chunks(self._drawn(blocks, pending)):
            self._keep(*pending.popleft(), encoded, pieces, bad)
            if pieces.rows >= PIECE:
                pieces.finish()
        pieces.finish()
        self._check_unchanged(pieces)
        bad.finish(self._judged_by())
        assert self.task is not None
        pieces.move(folder)
        facts: dict[str, Any] = {"task": self.task.name, "ledger": self.ledger.as_dict(), "drawn": self._splitter.drawn}
        if self.window is not None:
            facts |= {"end": astuple(self.window.end), "held_out": self._held_out_keys(splits)}
        write_json(folder / "facts.json", facts)

    def training_examples(self) -> Iterator[Example]:
        """The examples of the rows that train, as `run` will format and split them; nothing is encoded or written."""
        bad = BadRows(self.config.on_error)
        self._survey(bad)
        bad.finish(self._judged_by())
        for (_, parts), split in zip(self._good(), self._splits(), strict=False):  # of another number only in a changed file
            if split == "train":
                yield from (example for _, example in parts)

    def _splits(self) -> list[Split]:
        """The split of each row that the first pass found good."""
        free = iter(self._splitter.splits(self._shares(), self.config.seed, alike=self._alike()))
        return [next(free) if split is None else split for split in self._fixed]

    def _judged_by(self) -> int:
        """The number of rows of which few may be unreadable; the last shard of a pass is judged as if it were full."""
        read = self.ledger.total.read
        return max(read, self.window.rows) if self.window is not None and self.window.later else read

    def _held_out_keys(self, splits: Sequence[Split]) -> list[int]:
        """Hashes of the prompts and groups that the first shard of a stream holds out from all others."""
        assert self._kept is not None, "of a window"
        assert self.window is not None
        if self.window.later:
            return []
        keys: set[int] = set()
        for (row, parts), fixed, split in zip(self._kept, self._fixed, splits, strict=True):
            if fixed is None and split != "train" and row.values.get("split") is None:
                keys.update(keys_of(row.values, _examples_in(parts)))
        return sorted(keys)

    # ---- first pass ---------------------------------------------------------------------------------------------

    def _survey(self, bad: BadRows) -> None:
        """Read and format every row; count what cannot be, and note what decides the split of the others."""
        names: set[str] = set()
        for row, split in self._detected(self._read(bad, self.ledger)):
            if self._held_out and (name := row.values.get("task")) is not None:
                names.add(name := str(name))
                split = "test" if name in self._held_out else split
            try:
                parts = self._examples(row)
            except UsageError:
                raise
            except ValueError as error:
                _refuse(row, str(error), bad, self.ledger)
                continue
            if self.window is not None and self.window.must_not_train(row.values, _examples_in(parts)):
                self.ledger.add_dropped(row.source, HELD_OUT)
                continue
            self.ledger.add_unfolded(row.source, len(parts) - 1)
            if self._shots is not None:
                self._shots.offer(*parts[0], len(self._fixed))
            self._fixed.append(split)
            if split is None:
                self._splitter.add(row.values, map(prompt_key, _examples_in(parts)), row.id)
            if self._kept is not None:
                self._kept.append((row, parts))
        if self._renaming.met:
            source = str(self.places[0].path)
            if self.window is None or not self.window.later:  # later shards may lack what the first one has
                self._renaming.check(source)
            self._check_held_out(names, source)

    def _check_held_out(self, names: set[str], source: str) -> None:
        for name in sorted(self._held_out - names):
            if not names:
                raise DataError(
                    f"{source}: expected a column 'task' with the names of --holdout_tasks, got none; "
                    "type --columns.task COLUMN."
                )
            raise DataError(f"{source}: expected rows of the task '{name}', got none.{did_you_mean(name, names)}")

    def _read(self, bad: BadRows, ledger: Ledger | None = None) -> Iterator[tuple[Row, Split | None]]:
        """All readable rows of all files, and the split that a file was given for."""
        for place in self.places:
            source, before, read = str(place.path), bad.unreadable, 0
            part = None if place.split else self.window
            for row in part.read(place.path, bad, self._check_wanted) if part else read_rows(place.path, bad):
                read += 1
                yield self._renaming(row), place.split
            if ledger is not None:
                ledger.add_read(source, read + bad.unreadable - before)
                ledger.add_failed(source, bad.unreadable - before)

    def _check_wanted(self) -> None:
        if self.stop is not None and self.stop.is_set():
            raise TrainingError("The run ended before its next shard was encoded.")

    def _detected(self, rows: Iterator[tuple[Row, Split | None]]) -> Iterator[tuple[Row, Split | None]]:
        """The same rows, after their task has been found by the first of them."""
        if self.task is None:
            first = list(itertools.islice(rows, DETECTED_FROM))
            if first:
                self.task = self._task_of([row for row, _ in first])
            rows = itertools.chain(first, rows)
        if self.task is not None and self.task.demonstrations:
            if self.window is not None and self.task.demonstration_file is None:
                raise UsageError("Expected --task.shots_from FILE with --stream, as no shard has all training rows; got none.")
            self._shots = Shots(self.task, self.config.seed, self.config.columns)
        yield from rows

    def _task_of(self, rows: list[Row]) -> Task:
        try:
            return task_of(rows, self.registry.tasks, self.kinds)
        except DataError:
            # A misspelt column of --columns is the likelier reason, and the better message.
            self._renaming.check(rows[0].source)
            raise

    def _examples(self, row: Row) -> Parts:
        assert self.task is not None
        examples = examples_of(self.task, row)
        for _, example in examples:
            if not isinstance(example, self.kinds + self.further):
                raise UsageError(self._wrong_kind(type(example)))
        return examples

    def _wrong_kind(self, kind: type[Example]) -> str:
        """Why the objective cannot train on the task's examples, and which can."""
        assert self.task is not None
        wanted = " or ".join(WORDS[kind] for kind in self.kinds)
        said = f"Task {self.task.name} makes {WORDS[kind]} of the rows, but the objective trains on {wanted}; "
        objectives, tasks = self.registry.objectives, [self.registry.tasks[name] for name in self.registry.tasks]
        fit = [name for name in objectives if issubclass(kind, objectives[name].cls.examples)]
        other = [f"{entry.name} ({entry.cls.columns_help})" for entry in tasks if set(entry.cls.kinds()) & set(self.kinds)]
        for_it = f"rows and --task for it: {'; '.join(other)}" if len(other) == 1 else "another --task"
        return said + (
            f"type --objective {' or '.join(fit)}, or give {for_it}."
            if fit
            else f"no objective of the installed plugins trains on {WORDS[kind]}, so give {for_it}."
        )

    def _alike(self) -> list[tuple[int, int]]:
        """Pairs of rows to be split, by number, whose prompts are nearly the same; none where rows name their split."""
        if self._splitter.named or sum(share > 0 for share in self._shares()) < 2 or not finders(self.registry):
            return []
        if self._kept is None:
            self.say("data: nearly the same prompts are not looked for in files of this size; `data split` does")
            return []
        free = [parts for (_, parts), split in zip(self._kept, self._fixed, strict=True) if split is None]
        return alike_rows([prompt_of(parts[0][1]) for parts in free], self.registry, self.say)

    def _shares(self) -> list[float]:
        """The shares of rows without a split, those of splits with files of their own set to 0."""
        given = {place.split for place in self.places} | ({"test"} if self._held_out else set())
        shares = [0.0 if split in given else share for split, share in zip(SPLITS, [*self.shares, 0.0], strict=False)]
        return shares if sum(shares) else [1.0, 0.0, 0.0]

    # ---- second pass --------------------------------------------------------------------------------------------

    def _good(self) -> Iterator[tuple[Row, Parts]]:
        """The rows that the first pass found good, in its order."""
        if self._kept is not None:
            yield from self._kept
            return
        for row, _ in self._read(BadRows("skip")):
            try:
                parts = self._examples(row)
            except ValueError:
                continue
            yield row, parts

    def _drawn(
        self, blocks: Iterable[Sequence[tuple[tuple[Row, Parts], Split]]], pending: deque[tuple[list[_Item], int]]
    ) -> Iterator[list[tuple[Example, str]]]:
        """What the encoder gets of each block; the block waits in `pending` until it comes back."""
        for block in blocks:
            items = [(row, example, split) for (row, parts), split in block for row, example in self._with_shots(row, parts)]
            pending.append((items, len(block)))
            self._check_wanted()
            yield [(example, row.id) for row, example, _ in items]

    def _keep(self, items: Sequence[_Item], read: int, encoded: Sequence[Encoded | str], pieces: Pieces, bad: BadRows) -> None:
        """Account for a block and write it; a row that the template cannot render is one that cannot be read."""
        for (row, _, split), item in zip(items, encoded, strict=True):
            if isinstance(item, str):
                if self.config.on_error == "fail":  # as a rule it is the template, which would refuse all rows alike
                    raise DataError(f"{row.id}: {item}")
                _refuse(row, item, bad, self.ledger)
            elif _account(row, item, split, self.ledger):
                pieces.add(split, item, row.values if split != "train" else None)
        pieces.rows += read

    def _with_shots(self, row: Row, parts: Parts) -> Parts:
        """The same, with the training rows that the task shows before the row."""
        if self._shots is None:
            return parts
        return self._examples(replace(row, values=self._shots.before(row, parts[0][1])))

    def _check_unchanged(self, pieces: Pieces) -> None:
        try:
            for place in self.places:
                check_unchanged(place.path, place.stamp)
        except DataError:
            shutil.rmtree(pieces.folder)
            raise

    def _progress(self, blocks: Iterator[Any], done: int, total: int) -> Iterator[Any]:
        """The blocks, with a bar on a terminal when there are many rows."""
        if total <= 5 * BLOCK or not sys.stderr.isatty():
            yield from blocks
            return
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(blocks, description="tokenising", total=-(-total // CHUNK), completed=done // CHUNK, console=console)


def _examples_in(parts: Parts) -> list[Example]:
    return [example for _, example in parts]


def _blocks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while block := list(itertools.islice(rows, size)):
        yield block


def _account(row: Row, item: Encoded, split: Split, ledger: Ledger) -> bool:
    """Count an encoded row; whether it is used: a row without anything to train can be asked, so the test keeps it."""
    if item.truncated:
        ledger.add_cut(
            row.source,
            length=item.whole or len(item.input_ids) + item.truncated,
            lost=item.truncated,
            supervised_lost=item.supervised_lost,
        )
    supervised = item.supervised
    if not supervised and split != "test":
        ledger.add_dropped(row.source, NO_SUPERVISED)
        return False
    ledger.add_used(row.source, split, tokens=len(item.input_ids), supervised=supervised, roles=item.roles)
    return True


def _refuse(row: Row, reason: str, bad: BadRows, ledger: Ledger) -> None:
    """Note a row that could be read but not used."""
    bad.refuse(row.source, row.line, reason, json.dumps(row.values, ensure_ascii=False, default=str))
    ledger.add_failed(row.source)
