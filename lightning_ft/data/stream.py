"""A source larger than the disk: read, encoded and scheduled a shard at a time, the next one while this one trains.

A shard is a number of rows in the order of the files. Its steps are those of a schedule of its own, so that step n of the
run is in the shard whose first step is the last one up to n. The index says where in the source each shard starts and
with which step: a resumed run builds the one shard that it needs again, and gets the same rows.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.atomic import MANIFEST, broken, one_at_a_time, whole_folder, write_json
from lightning_ft.data.ledger import Ledger
from lightning_ft.data.table import EncodedTable
from lightning_ft.data.window import Position
from lightning_ft.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lightning_ft.data.schedule import PlannedStep, Schedule

QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Shard:
    """Encoded rows with the steps that they make."""

    first: int
    """Number of its first step."""
    table: EncodedTable
    schedule: Schedule

    def step(self, number: int) -> PlannedStep:
        """The plan of a step of the run."""
        return replace(self.schedule.step(number - self.first), number=number)


@dataclass(frozen=True)
class Entry:
    """What the index says of a shard."""

    first: int
    """Number of its first step."""
    steps: int
    start: Position
    end: Position
    """Where the next shard starts."""
    content: str
    """Hash of its encoded rows."""
    ledger: dict[str, Any]

    @property
    def end_step(self) -> int:
        """Number of the step after its last one."""
        return self.first + self.steps

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        """The entry that `dataclasses.asdict` described."""
        places = {name: Position(**values[name]) for name in ("start", "end")}
        return cls(**{**values, **places})


class Stream:
    """The shards of a run; the first one is encoded before the run starts and also holds the rows held out.

    Args:
        first: The first shard.
        end: Where in the source the second one starts.
        ledger: The account of the first one.
        encode: Writes the shard that starts at a position into a folder: tables, and facts.json with `ledger` and `end`.
            It stops with an error of its own once the event is set.
        plan: The schedule of a shard, by its table and its number.
        total_steps: Of the run.
        content: Hash of the first shard's rows.
        work: Takes the shards; nothing else lies there, and no other run uses it.
        run: The run folder, which keeps the index, the ledger and the rows that could not be read.
        writes: Whether this process keeps the run folder's account.
        deletes: Whether it deletes what has been trained from this machine's disk.
        max_lost: Largest share of rows that may be cut.
        say: Prints a line.
    """

    def __init__(
        self, first: Shard, end: Position, ledger: Ledger, encode: Callable[[Position, Path, threading.Event], None],
        plan: Callable[[EncodedTable, int], Schedule], total_steps: int, content: str, work: Path, run: Path, *,
        writes: bool, deletes: bool, max_lost: float, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.first, self.total_steps = first, total_steps
        self._encode, self._plan, self._work, self._writes, self._say = encode, plan, work, writes, say
        self._deletes, self._gone = deletes, 1
        self._run, self._index, self._max_lost = run, run / "stream.json", max_lost
        steps = first.schedule.total_steps
        self._entries = [Entry(0, steps, Position(), end, content, ledger.as_dict())]
        self._opened: tuple[int, Shard] = (0, first)
        self._thread: threading.Thread | None = None
        self._begun = -1
        """The shard whose successor the thread encodes or has encoded."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._reload()

    def at(self, number: int) -> Shard:
        """The shard that holds a step of the run, encoded now if nobody has done it yet.

        Raises:
            DataError: rows cannot be read, or are not those that the run has had before.
            CheckFailedError: too many of the rows so far had to be cut.
        """
        place = self._find(number)
        while place is None:
            self._extend()
            place = self._find(number)
        if place == 0:
            return self.first
        if self._opened[0] != place:
            self._opened = (place, self._open(place))
        return self._opened[1]

    def ahead(self, number: int, done: int) -> None:
        """Called before a step is built, in its order: begins with the next shard, and deletes those that are done.

        Args:
            number: The step.
            done: Steps that have been trained.
        """
        before = self._opened[0]
        self.at(number)
        place = self._find(number)
        assert place is not None, "at() has found it"
        if self._writes and place != before:
            self._keep_account(place)
            now = self._entries[place]
            self._say(f"stream: shard {place + 1}, steps {now.first + 1} to {now.first + now.steps}")
        while self._deletes and self._gone < place and self._entries[self._gone].end_step <= done:
            shutil.rmtree(self._folder(self._gone), ignore_errors=True)
            self._gone += 1
        if place != self._begun and self._entries[place].end_step < self.total_steps:
            self._begun = place
            self._thread = threading.Thread(target=self._begin, args=(place + 1,), daemon=True)
            self._thread.start()

    def epoch_of(self, number: int) -> float:
        """How often the whole source had been read when the shard of the last of `number` steps started.

        Not of the step after them: whether its shard is known by now depends on how fast it is encoded.
        """
        place = self._find(max(0, number - 1))
        assert place is not None, "the steps before have been trained"
        return float(self._entries[place].start.turn)

    def settle(self, steps: int) -> None:
        """Called when so many steps have been trained and no more will be: the account is that of their shards."""
        self._stop.set()
        place = self._find(steps - 1) if steps else 0
        if self._writes and place is not None:
            self._keep_account(place)

    def close(self, *, finished: bool) -> None:
        """Stop encoding; the shards of a finished run are deleted."""
        self._stop.set()
        if (thread := self._thread) is not None:
            thread.join()
        if finished and self._deletes:
            shutil.rmtree(self._work.parent, ignore_errors=True)

    def _folder(self, place: int) -> Path:
        return self._work / f"shard-{place:05}"

    def _find(self, number: int) -> int | None:
        place = bisect_right(self._entries, number, key=lambda entry: entry.first) - 1
        if number < self._entries[place].end_step:
            return place
        known = len(self._entries)
        self._reload()  # another process may have gone on
        return self._find(number) if len(self._entries) > known else None

    def _reload(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = [Entry.from_dict(values) for values in json.loads(self._index.read_text(encoding="utf-8"))]
            first = self._entries[0]
            if (found[0].content, found[0].steps) != (first.content, first.steps):
                raise self._others(0)
            if len(found) >= len(self._entries):
                self._entries = [first, *found[1:]]

    def _extend(self) -> None:
        """Encode the shard after the last one, and write it into the index."""
        place = len(self._entries)
        with self._alone():
            self._reload()
            if len(self._entries) > place:
                return
            last = self._entries[-1]
            facts, content = self._build(place, last.end)
            table = EncodedTable(*self._tables(place))
            steps = self._plan(table, place).total_steps if len(table) else 0
            entry = Entry(last.end_step, steps, last.end, Position(*facts["end"]), content, facts["ledger"])
            entries = [*self._entries, entry]
            account = _sum(entries)
            account.closes()
            account.check(self._max_lost)
            write_json(self._index, [asdict(each) for each in entries])
            self._entries = entries

    def _begin(self, place: int) -> None:
        """Encode a shard in the background; what goes wrong is met again, and told, where the shard is needed."""
        with contextlib.suppress(Exception):
            if place < len(self._entries):
                self._whole(place)
            else:
                self._extend()

    def _open(self, place: int) -> Shard:
        entry = self._entries[place]
        self._whole(place)
        table = EncodedTable(*self._tables(place))
        schedule = self._plan(table, place)
        if schedule.total_steps != entry.steps:
            raise self._others(place)
        return Shard(entry.first, table, schedule)

    def _whole(self, place: int) -> None:
        """Encode a shard of the index again where it is not there; others are not waited for where it is."""
        if broken(self._folder(place)) is None:
            return
        with self._alone():
            entry = self._entries[place]
            if broken(self._folder(place)) is not None and self._build(place, entry.start)[1] != entry.content:
                raise self._others(place)

    def _others(self, place: int) -> DataError:
        start = self._entries[place].start
        return DataError(
            f"Expected the rows of shard {place + 1} (from row {start.row + 1} of file {start.file + 1}) and their batches to "
            "be those that the run had before, got others; restore the files and options, or start a new run."
        )

    def _build(self, place: int, start: Position) -> tuple[dict[str, Any], str]:
        folder = self._folder(place)
        if broken(folder) is not None:
            with whole_folder(folder) as target:
                self._encode(start, target, self._stop)
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return facts, content_of(folder)

    def _tables(self, place: int) -> list[Path]:
        return sorted(self._folder(place).glob("train-*.arrow"))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self._work.mkdir(parents=True, exist_ok=True)
        with self._lock, one_at_a_time(self._work / "lock"):  # some network file systems know no locks of files
            yield

    def _keep_account(self, place: int) -> None:
        """ledger.json of all rows up to this shard, and a copy of the rows that could not be read."""
        write_json(self._run / layout.LEDGER, _sum(self._entries[: place + 1]).as_dict())
        for each in range(self._gone, place + 1):
            if (quarantined := self._folder(each) / QUARANTINE).is_file():
                shutil.copy(quarantined, self._run / f"quarantine-{each:05}.jsonl")


def content_of(folder: Path) -> str:
    """Hash of the training rows that were encoded into a folder."""
    files: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return " ".join(files[name]["sha256"] for name in sorted(files) if name.startswith("train-"))


def _sum(entries: list[Entry]) -> Ledger:
    """One account of several shards."""
    total = Ledger.from_dict(entries[0].ledger)
    for entry in entries[1:]:
        total.add(Ledger.from_dict(entry.ledger))
    return total
