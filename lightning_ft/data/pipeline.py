"""The data of a run: its encoded splits, from the cache or built now, under a key of all that decides the tokens."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import inspect
import json
import marshal
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import broken, clear_leftovers, one_at_a_time, sha256, whole_folder
from lightning_ft.cache import cache_root
from lightning_ft.data.alike import finders
from lightning_ft.data.build import Build, Place
from lightning_ft.data.ledger import Ledger
from lightning_ft.data.shots import files_of
from lightning_ft.data.sources import expand, sample_digest, split_of_name, splits_by_name
from lightning_ft.data.split import FLAGS, RULE, SPLITS, Split
from lightning_ft.data.table import EncodedTable
from lightning_ft.data.window import Position, Window
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from threading import Event

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.encode import Encoder
    from lightning_ft.registry import Registry
    from lightning_ft.task import Task
    from lightning_ft.types import Example


@dataclass(frozen=True)
class Prepared:
    """Encoded data of a run."""

    tables: Mapping[Split, EncodedTable]
    ledger: Ledger
    task: Task
    identity: str
    """Hash of contents, task, tokens and split, wherever the files lie: by it a resume knows that it is the same data."""
    division: str
    """The part of it that decides which rows train: of another one, rows that trained stand among those that are held out."""
    folder: Path
    """Where the tables lie, and the quarantine file if there is one."""
    hashes: Mapping[str, str]
    """SHA-256 of each file's content; of a stream's files of parts of it."""
    end: Position | None
    """Where the first shard of a stream ends."""
    held_out: frozenset[int]
    """Hashes of prompts and groups that no later shard of a stream may train."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text that trains; of a stream, whose later rows nobody knows, the most that one may have."""
        table = self.tables["train"]
        most = int(max(table.padded, default=0)) // table.texts
        return most if self.end is None else self.ledger.max_length or most

    def record(self) -> dict[str, Any]:
        """What a run notes of its data."""
        return {"identity": self.identity, "division": self.division, "files": dict(self.hashes)}

    def examples(self, split: Split, indices: Sequence[int]) -> list[Example]:
        """The examples again, of rows in validation or test."""
        return [self.task.format(self.tables[split].values(i)) for i in indices]


class Pipeline:
    """Prepares the data of a run, or opens what an earlier run with the same inputs left in the cache.

    Args:
        config: The run's options.
        registry: For the tasks.
        encoder: Tokenizer and template.
        task: The task class and its options, or None to detect it.
        kinds: Example types that the objective eats.
        say: Prints a line.
        further: Example types that are taken, too, where no task makes one of `kinds` of the rows: they are not for training.
    """

    def __init__(
        self, config: TrainingConfig, registry: Registry, encoder: Encoder, task: Task | None,
        kinds: tuple[type[Example], ...], say: Callable[[str], None], further: tuple[type[Example], ...] = (),
    ) -> None:  # fmt: skip
        self.config, self.registry, self.encoder, self.kinds, self.say = config, registry, encoder, kinds, say
        self.task, self.further = task, further
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
        tables = {split: EncodedTable(*sorted(folder.glob(f"{split}-*.arrow"))) for split in SPLITS}
        ledger.closes()
        ledger.check(self.config.max_lost, self.encoder.positions)
        self.say(f"data: {ledger.summary()}")
        hashes = {str(path): content for content, (path, _) in zip(self._digests, self.files, strict=True)}
        end = Position(*facts["end"]) if "end" in facts else None
        held_out = frozenset(facts.get("held_out", ()))
        return Prepared(
            tables, ledger, self.task, self._identity(), self._division(drawn=facts["drawn"]), folder, hashes, end, held_out
        )

    def encode_shard(self, start: Position, held_out: frozenset[int], folder: Path, stop: Event) -> None:
        """Write the shard of a stream that starts at `start` into a folder; its rows all train.

        Args:
            start: Its first row.
            held_out: Hashes of the prompts that must not train.
            folder: An empty folder.
            stop: Ends the work when it is set.
        """
        assert self.task is not None, "the first shard has found it"
        assert self.config.stream is not None
        window = Window(start, self.config.stream, held_out)
        places = [place for place in self._places if place.split is None]
        build = Build(
            self.config, places, self.registry, self.encoder, self.task, self.kinds, [1.0, 0.0, 0.0], lambda _: None,
            window=window, stop=stop,
        )  # fmt: skip
        build.run(folder, folder.with_name(f"{folder.name}-unfinished"))

    def training_examples(self) -> Iterator[Example]:
        """The examples of the rows that train, before anything is encoded.

        Raises:
            UsageError: the rows come as a stream, of which nobody has all.
        """
        if self.config.stream is not None:
            raise UsageError(
                "Expected no --stream where the tokenizer gets words of the training rows, as no shard has them all; leave "
                "--stream out, or name the words in a file."
            )
        build = Build(
            self.config, self._places, self.registry, self.encoder, self.task, self.kinds, self.config.split, lambda _: None
        )
        yield from build.training_examples()

    @cached_property
    def _places(self) -> list[Place]:
        return [Place.of(path, split) for path, split in self.files]

    @cached_property
    def _digests(self) -> list[str]:
        """Hash of each file's content; a stream's files are not read for it."""
        streamed = self.config.stream is not None
        return [sample_digest(p.path) if streamed and p.split is None else sha256(p.path) for p in self._places]

    @cached_property
    def _shown(self) -> list[str]:
        """Hash of each further file that the task takes its shots from."""
        return [sha256(path) for path in files_of(self.task)]

    def _identity(self) -> str:
        return _hash((self._division(drawn=True), self.encoder.fingerprint, self._shown))

    def _division(self, *, drawn: bool) -> str:
        """Hash of what decides the split of each row; `drawn`: of some the seed does."""
        assert self.task is not None
        contents = [(content, split) for content, (_, split) in zip(self._digests, self.files, strict=True)]
        own = self.config
        by_seed = (RULE, self.task.name, asdict(self.task), own.split, own.seed, finders(self.registry))
        return _hash((contents, own.columns, own.holdout_tasks, own.stream, by_seed if drawn else None))

    def _key(self) -> str:
        """The cache entry: everything that decides the tokens, and the names that messages and rows show."""
        tasks = [self.registry.tasks[name].cls for name in self.registry.tasks] if self.task is None else [type(self.task)]
        facts = {
            "files": [(str(path), content, split) for content, (path, split) in zip(self._digests, self.files, strict=True)],
            "task": None if self.task is None else (type(self.task).__name__, asdict(self.task)),
            "code": [_own_code(), *(_code(cls) for cls in tasks)],
            "encoder": self.encoder.fingerprint,
            # They render and tokenise; their versions are no part of the identity, as a run may go on with other ones.
            "libraries": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
            "columns": self.config.columns, "split": self.config.split, "seed": self.config.seed,
            "on_error": self.config.on_error, "holdout_tasks": self.config.holdout_tasks, "shots": self._shown,
            # Parts of a file say little of its middle.
            "stream": self.config.stream and (self.config.stream, [place.stamp for place in self._places]),
            "alike": finders(self.registry),
            "kinds": [[kind.__name__ for kind in kinds] for kinds in (self.kinds, self.further)],
        }  # fmt: skip
        return _hash(facts)

    def _entry(self) -> Path:
        """The folder with the encoded rows, built now unless an earlier run or another rank has left it."""
        entry = cache_root() / "encoded" / self._key()
        with contextlib.ExitStack() as stack:
            try:
                entry.parent.mkdir(parents=True, exist_ok=True)
                # Ranks start together: one does the work, the others wait for it. The lock's file must stay: deleted, it
                # could be locked by one process while another locks a new one.
                if stack.enter_context(one_at_a_time(entry.with_suffix(".lock"))):
                    clear_leftovers(entry.parent, f"{entry.name}-*")
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
        window = None if self.config.stream is None else Window(Position(), self.config.stream)
        build = Build(
            self.config, self._places, self.registry, self.encoder, self.task, self.kinds, self.config.split, self.say,
            window=window, further=self.further,
        )  # fmt: skip
        with whole_folder(target) as folder:
            build.run(folder, target.with_suffix(".unfinished"))
        self.task = build.task


def _assigned(files: list[tuple[Path, Split | None]]) -> list[tuple[Path, Split | None]]:
    """The files with the split that their flag or, where all of `data` is named so, their name says.

    Training files keep None, so that a split without any file is taken from their rows, as it is with a `split` column.

    Raises:
        UsageError: one file is given twice, whose rows would stand in training and in the test; or files are named after
            several splits and one is not, which alone would decide whether the others' names count.
    """
    free = [path for path, split in files if split is None]
    named = splits_by_name(free)
    _check_all_named(free)
    seen: dict[Path, Split | None] = {}
    for path, split in files:
        before = seen.setdefault(path.resolve(), split)
        if before != split:
            raise UsageError(
                f"Expected each file once, got '{path}' in {FLAGS[before]} and in {FLAGS[split]}; take it out of one."
            )
    assigned = [(path, split or named.get(path)) for path, split in files]
    return [(path, None if split == "train" else split) for path, split in assigned]


def _check_all_named(paths: Sequence[Path]) -> None:
    said = {path: split_of_name(path) for path in paths}
    silent = next((path for path, split in said.items() if split is None), None)
    if silent is not None and len(set(said.values())) > 2:
        other = next(path for path, split in said.items() if split)
        raise UsageError(
            f"Expected all files of --data or none to be named after a split, as '{other}' is; got '{silent}'; take it out, or "
            "name the files of each split after --data, --val_data and --test_data."
        )


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


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
    """Hash of the packages that a task class and its bases stand in: an edited formatter is another cache entry."""
    return hashlib.sha256(b"\0".join(_source(base) for base in cls.__mro__[:-1])).hexdigest()


def _source(cls: type[Any]) -> bytes:
    """The source of a class's module and those beside it in its package; of a class from a notebook the compiled functions."""
    module = inspect.getmodule(cls)
    try:
        if module is not None and module.__package__ and module.__file__:
            return b"\0".join(path.read_bytes() for path in sorted(Path(module.__file__).parent.glob("*.py")))
        return inspect.getsource(module or cls).encode()
    except (OSError, TypeError):
        functions = [getattr(member, "__func__", member) for member in vars(cls).values()]
        return b"\0".join(marshal.dumps(f.__code__, 2) for f in functions if hasattr(f, "__code__"))


def copy_quarantine(prepared: Prepared, run: Path) -> None:
    """Put the quarantined rows, if any, into the run folder."""
    file = prepared.folder / "quarantine.jsonl"
    if file.is_file():
        shutil.copy(file, run / "quarantine.jsonl")
