"""From files to encoded splits: read, detect, format, split, encode, account, cache."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import inspect
import json
import marshal
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import broken, one_at_a_time, whole_folder, write_json
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import task_of
from lightning_ft.data.ledger import NO_SUPERVISED, Ledger
from lightning_ft.data.rename import check_columns, renamed
from lightning_ft.data.sources import digest, expand, read_rows, splits_by_name
from lightning_ft.data.split import SPLITS, Split, split_rows
from lightning_ft.data.table import EncodedTable, TableWriter
from lightning_ft.data.unfold import examples_of
from lightning_ft.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.encode import Encoder
    from lightning_ft.registry import Registry
    from lightning_ft.task import Task
    from lightning_ft.types import Encoded, Example, Row

BLOCK = 2000
"""Rows that are encoded at a time."""


@dataclass(frozen=True)
class Prepared:
    """Encoded data of a run."""

    tables: Mapping[Split, EncodedTable]
    ledger: Ledger
    task: Task
    identity: str
    """Hash of contents, task, tokens and split, wherever the files lie: by it a resume knows that it is the same data."""
    folder: Path
    """Where the tables lie, and the quarantine file if there is one."""
    hashes: Mapping[str, str]
    """SHA-256 of each file's content."""

    def examples(self, split: Split, indices: Sequence[int]) -> list[Example]:
        """The examples again, of rows in validation or test."""
        return [self.task.format(self.tables[split].values(i)) for i in indices]


def cache_root() -> Path:
    """`$LIGHTNING_FT_CACHE`, else lightning-ft under the user's cache folder."""
    if own := os.environ.get("LIGHTNING_FT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-ft"


class Pipeline:
    """Prepares the data of a run, or opens what an earlier run with the same inputs left in the cache.

    Args:
        config: The run's options.
        registry: For the tasks.
        encoder: Tokenizer and template.
        task: The task class and its options, or None to detect it.
        kinds: Example types that the objective eats.
        say: Prints a line.
    """

    def __init__(
        self, config: TrainingConfig, registry: Registry, encoder: Encoder, task: Task | None,
        kinds: tuple[type[Example], ...], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.config, self.registry, self.encoder, self.kinds, self.say = config, registry, encoder, kinds, say
        self.task = task
        given: list[tuple[list[str] | None, Split | None]] = [
            (config.data, None), (config.val_data, "validation"), (config.test_data, "test"),
        ]  # fmt: skip
        self.files = _assigned([(path, split) for names, split in given if names for path in expand(names)])

    def prepare(self) -> Prepared:
        """The encoded splits."""
        folder = self._entry()
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        if self.task is None:
            self.task = self.registry.tasks[facts["task"]].cls()
        ledger = Ledger.from_dict(facts["ledger"])
        tables = {split: EncodedTable(folder / f"{split}.arrow") for split in SPLITS}
        ledger.closes()
        ledger.check(self.config.max_lost)
        self.say(f"data: {ledger.summary()}")
        hashes = {str(path): content for content, (path, _) in zip(self._digests, self.files, strict=True)}
        return Prepared(tables, ledger, self.task, self._identity(), folder, hashes)

    @cached_property
    def _digests(self) -> list[str]:
        """Hash of each file's content."""
        return [digest(path) for path, _ in self.files]

    def _identity(self) -> str:
        assert self.task is not None
        contents = [(content, split) for content, (_, split) in zip(self._digests, self.files, strict=True)]
        facts = (
            contents,
            self.task.name,
            asdict(self.task),
            self.encoder.fingerprint,
            self.config.split,
            self.config.seed,
            self.config.columns,
        )
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _key(self) -> str:
        """The cache entry: everything that decides the tokens, and the names that messages and rows show."""
        tasks = [self.registry.tasks[name].cls for name in self.registry.tasks] if self.task is None else [type(self.task)]
        facts = {
            "files": [(str(path), content, split) for content, (path, split) in zip(self._digests, self.files, strict=True)],
            "task": None if self.task is None else (type(self.task).__name__, asdict(self.task)),
            "code": [_own_code(), *(_code(cls) for cls in tasks)],
            "encoder": self.encoder.fingerprint,
            "columns": self.config.columns, "split": self.config.split, "seed": self.config.seed,
            "on_error": self.config.on_error,
            "kinds": [kind.__name__ for kind in self.kinds],
        }  # fmt: skip
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _entry(self) -> Path:
        """The folder with the encoded rows, built now unless an earlier run or another rank has left it."""
        entry = cache_root() / "encoded" / self._key()
        with contextlib.ExitStack() as stack:
            try:
                entry.parent.mkdir(parents=True, exist_ok=True)
                # Ranks start together: one does the work, the others wait for it. The lock's file must stay: deleted, it
                # could be locked by one process while another locks a new one.
                stack.enter_context(one_at_a_time(entry.with_suffix(".lock")))
            except OSError as error:
                if broken(entry) is not None:
                    self.say(f"data: the cache folder cannot be written ({error}); encoded data will not be kept")
                    entry = _temporary() / entry.name
            if broken(entry) is None:
                self.say(f"data: encoded earlier, read from the cache ({entry.name[:12]})")
            else:
                self._build(entry)
        return entry

    def _build(self, target: Path) -> None:
        """Do the work; the folder is there only when all of it is done."""
        with whole_folder(target) as folder:
            ledger = Ledger(max_length=self.encoder.max_length)
            bad = BadRows(self.config.on_error, folder / "quarantine.jsonl")
            rows = self._rows(bad, ledger)
            formatted = self._format(rows, bad, ledger)
            bad.finish(ledger.total.read)
            self._encode(folder, rows, formatted, bad, ledger)
            bad.finish(ledger.total.read)
            assert self.task is not None
            write_json(folder / "facts.json", {"task": self.task.name, "ledger": ledger.as_dict()})

    def _rows(self, bad: BadRows, ledger: Ledger) -> list[tuple[Row, Split | None]]:
        """All readable rows of all files, and the split that a file was given for."""
        rows: list[tuple[Row, Split | None]] = []
        for path, split in self.files:
            failed = bad.count
            found = [(renamed(row, self.config.columns), split) for row in read_rows(path, bad)]
            ledger.add_read(str(path), len(found) + bad.count - failed)
            ledger.add_failed(str(path), bad.count - failed)
            rows += found
        if not rows:
            bad.finish(ledger.total.read)
        check_columns([row for row, _ in rows], self.config.columns)
        return rows

    def _format(self, rows: list[tuple[Row, Split | None]], bad: BadRows, ledger: Ledger) -> list[list[tuple[Row, Example]]]:
        """What each row stands for, as a rule itself with its example; nothing for a row that the task refuses."""
        if self.task is None and rows:
            self.task = task_of([row for row, _ in rows], self.registry.tasks, self.kinds)
        formatted: list[list[tuple[Row, Example]]] = []
        for row, _ in rows:
            try:
                formatted.append(self._examples(row))
            except UsageError:
                raise
            except ValueError as error:
                _refuse(row, str(error), bad, ledger)
                formatted.append([])
        return formatted

    def _examples(self, row: Row) -> list[tuple[Row, Example]]:
        assert self.task is not None
        examples = examples_of(self.task, row)
        for _, example in examples:
            if not isinstance(example, self.kinds):
                wanted = " or ".join(kind.__name__ for kind in self.kinds)
                raise UsageError(
                    f"Task {self.task.name} makes {type(example).__name__} examples, but the objective trains on {wanted}; "
                    "name another --task or --objective."
                )
        return examples

    def _encode(
        self, folder: Path, rows: list[tuple[Row, Split | None]], formatted: list[list[tuple[Row, Example]]], bad: BadRows,
        ledger: Ledger,
    ) -> None:  # fmt: skip
        """Split and encode what is left, block by block; a row that the template cannot render is one that cannot be read."""
        good = [(row, split, parts) for (row, split), parts in zip(rows, formatted, strict=True) if parts]
        splits = self._splits([(row, split) for row, split, _ in good])
        items = [(row, example, split) for (_, _, parts), split in zip(good, splits, strict=True) for row, example in parts]
        for row, _, parts in good:
            ledger.add_unfolded(row.source, len(parts) - 1)
        writers = {split: TableWriter(folder / f"{split}.arrow") for split in SPLITS}
        for start in self._progress(range(0, len(items), BLOCK), len(items)):
            block = items[start : start + BLOCK]
            encoded = self.encoder.try_encode([example for _, example, _ in block], [row.id for row, _, _ in block])
            kept: dict[Split, list[Any]] = {split: [] for split in SPLITS}
            for (row, _, split), item in zip(block, encoded, strict=True):
                if isinstance(item, str):
                    if self.config.on_error == "fail":  # as a rule it is the template, which would refuse all rows alike
                        raise DataError(f"{row.id}: {item}")
                    _refuse(row, item, bad, ledger)
                elif _account(row, item, split, ledger):
                    kept[split].append((item, row.values if split != "train" else None))
            for split, found in kept.items():
                writers[split].write([item for item, _ in found], [values for _, values in found])
        for writer in writers.values():
            writer.close()

    def _splits(self, rows: list[tuple[Row, Split | None]]) -> list[Split]:
        """The split of each row: its file's, else that of the splitter over all rows whose files say nothing."""
        free = [row for row, split in rows if split is None]
        found = iter(split_rows([row.values for row in free], self._shares(), self.config.seed, ids=[row.id for row in free]))
        return [next(found) if split is None else split for _, split in rows]

    def _shares(self) -> list[float]:
        """The shares of rows without a split, those of splits with files of their own set to 0."""
        given = {split for _, split in self.files}
        shares = [0.0 if split in given else share for split, share in zip(SPLITS, [*self.config.split, 0.0], strict=False)]
        return shares if sum(shares) else [1.0, 0.0, 0.0]

    def _progress(self, blocks: range, total: int) -> Iterator[int]:
        """The blocks, with a bar on a terminal when there are many rows."""
        if total <= 5 * BLOCK or not sys.stderr.isatty():
            yield from blocks
            return
        from rich.console import Console
        from rich.progress import track

        yield from track(blocks, description="tokenising", console=Console(stderr=True))


def _account(row: Row, item: Encoded, split: Split, ledger: Ledger) -> bool:
    """Count an encoded row; whether anything of it is left to train."""
    if item.truncated:
        ledger.add_cut(
            row.source,
            length=len(item.input_ids) + item.truncated,
            lost=item.truncated,
            supervised_lost=item.supervised_lost,
        )
    supervised = item.supervised
    if not supervised:
        ledger.add_dropped(row.source, NO_SUPERVISED)
        return False
    ledger.add_used(row.source, split, tokens=len(item.input_ids), supervised=supervised, roles=item.roles)
    return True


def _refuse(row: Row, reason: str, bad: BadRows, ledger: Ledger) -> None:
    """Note a row that could be read but not used."""
    bad.add(row.source, row.line, reason, json.dumps(row.values, ensure_ascii=False, default=str))
    ledger.add_failed(row.source)


def _assigned(files: list[tuple[Path, Split | None]]) -> list[tuple[Path, Split | None]]:
    """The files with the split that their flag or, where all of `data` is named so, their name says.

    Training files keep None, so that a split without any file is taken from their rows, as it is with a `split` column.

    Raises:
        UsageError: one file is given twice; its rows would stand in training and in the test.
    """
    named = splits_by_name([path for path, split in files if split is None])
    flags = {None: "--data", "validation": "--val_data", "test": "--test_data"}
    seen: dict[Path, Split | None] = {}
    for path, split in files:
        before = seen.setdefault(path.resolve(), split)
        if before != split:
            raise UsageError(
                f"Expected each file once, got '{path}' in {flags[before]} and in {flags[split]}; take it out of one."
            )
    assigned = [(path, split or named.get(path)) for path, split in files]
    return [(path, None if split == "train" else split) for path, split in assigned]


def _temporary() -> Path:
    """A folder that is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="lightning-ft-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _own_code() -> str:
    """Hash of the code that reads, splits and writes rows, so that nobody has to remember to raise a version number."""
    code = "\0".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(code.encode()).hexdigest()


def _code(cls: type[Any]) -> str:
    """Hash of the modules that a task class and its bases stand in: an edited formatter is another cache entry."""
    return hashlib.sha256(b"\0".join(_source(base) for base in cls.__mro__[:-1])).hexdigest()


def _source(cls: type[Any]) -> bytes:
    """The source of a class's module; of a class from a notebook, which has none, the compiled functions."""
    try:
        return inspect.getsource(inspect.getmodule(cls) or cls).encode()
    except (OSError, TypeError):
        functions = [getattr(member, "__func__", member) for member in vars(cls).values()]
        return b"\0".join(marshal.dumps(f.__code__, 2) for f in functions if hasattr(f, "__code__"))


def copy_quarantine(prepared: Prepared, run: Path) -> None:
    """Put the quarantined rows, if any, into the run folder."""
    file = prepared.folder / "quarantine.jsonl"
    if file.is_file():
        shutil.copy(file, run / "quarantine.jsonl")
