"""The account of every input row and token: what was read, where it went, and what was lost on the way."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import CheckFailedError, DataError, TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.data.split import Split

EMPTY = "empty"
NO_SUPERVISED = "no supervised token left"
DUPLICATE = "duplicate"
HELD_OUT = "held out from the rest of a stream"
FIT = 0.99
"""Share of rows that the advised `--max_length` fits."""
FORMAT_VERSION = 1


@dataclass
class Counts:
    """The account of one source."""

    read: int = 0
    """Rows met, unreadable ones included."""
    unfolded: int = 0
    """Rows on top of these, where a row of the file stands for several (trees of replies, lists of instances)."""
    train: int = 0
    validation: int = 0
    test: int = 0
    failed: int = 0
    """Rows that could not be read or formatted."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    truncated: int = 0
    """Rows longer than `max_length`, those that were dropped for it included."""
    tokens_lost: int = 0
    supervised_lost: int = 0
    tokens: int = 0
    """Tokens of the rows in use."""
    supervised: int = 0
    """Tokens with a loss among them."""
    role_tokens: Counter[str] = field(default_factory=Counter)
    """Tokens by role, where known."""
    role_supervised: Counter[str] = field(default_factory=Counter)

    @property
    def used(self) -> int:
        """Rows in one of the splits."""
        return self.train + self.validation + self.test

    def as_dict(self) -> dict[str, Any]:
        """Plain values; dataclasses.asdict cannot copy a Counter."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """The counts that `as_dict` described."""
        plain: dict[str, Any] = {key: Counter(value) if isinstance(value, dict) else value for key, value in values.items()}
        return cls(**plain)

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)})


@dataclass
class Ledger:
    """Counts per source. Every row is added once by `add_read` and once by `add_used`, `add_dropped` or `add_failed`."""

    sources: dict[str, Counts] = field(default_factory=dict)
    max_length: int | None = None
    """The limit that rows were cut to, for messages."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Tokens of the rows that are used, as they train."""
    cut_lengths: Counter[int] = field(default_factory=Counter)
    """Full lengths in tokens of the rows that were longer than the limit."""

    def source(self, name: str) -> Counts:
        """The account of a source, opened on first use."""
        if name not in self.sources:
            self.sources[name] = Counts()
        return self.sources[name]

    def add_read(self, source: str, rows: int = 1) -> None:
        """Rows were met in the source, readable or not."""
        self.source(source).read += rows

    def add_unfolded(self, source: str, rows: int) -> None:
        """A row that was read stands for this many more."""
        self.source(source).unfolded += rows

    def add_failed(self, source: str, rows: int = 1) -> None:
        """Rows could not be read or formatted."""
        self.source(source).failed += rows

    def add_dropped(self, source: str, reason: str, rows: int = 1) -> None:
        """Rows were left out (`EMPTY`, `NO_SUPERVISED`, `DUPLICATE` or another reason)."""
        self.source(source).dropped[reason] += rows

    def add_used(
        self, source: str, split: Split, *, tokens: int, supervised: int, roles: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        """A row went into a split; `roles` has (tokens, supervised tokens) of each role."""
        counts = self.source(source)
        setattr(counts, split, getattr(counts, split) + 1)
        counts.tokens += tokens
        counts.supervised += supervised
        self.lengths[tokens] += 1
        for role, (all_tokens, trained) in (roles or {}).items():
            counts.role_tokens[role] += all_tokens
            counts.role_supervised[role] += trained

    def add_cut(self, source: str, *, length: int, lost: int, supervised_lost: int = 0) -> None:
        """A row with a text of `length` tokens lost some to `max_length`; on top of `add_used` or `add_dropped`."""
        counts = self.source(source)
        counts.truncated += 1
        counts.tokens_lost += lost
        counts.supervised_lost += supervised_lost
        self.cut_lengths[length] += 1

    @property
    def total(self) -> Counts:
        """The account of all sources together."""
        return sum(self.sources.values(), Counts())

    def fitting_length(self, share: float = FIT) -> int:
        """The shortest `max_length` that fits this share of the rows; 0 where no row was cut."""
        total = self.total
        spare = int((1 - share) * (total.used + sum(total.dropped.values())) + 1e-9)
        for length in sorted(self.cut_lengths, reverse=True):
            spare -= self.cut_lengths[length]
            if spare < 0:
                return length
        return 0

    def check(self, max_lost: float, positions: int | None = None) -> None:
        """Refuse data of which too much is lost.

        Args:
            max_lost: Largest share of the rows that may be cut or emptied.
            positions: Longest `max_length` that the model has places for; None: not known.

        Raises:
            DataError: no row with a supervised token is left.
            CheckFailedError: `max_length` cuts or empties a larger share of the rows than `max_lost`.
        """
        total = self.total
        share = total.truncated / max(1, total.used + sum(total.dropped.values()))
        nothing = not total.used or (not total.supervised and NO_SUPERVISED in total.dropped)
        if nothing and share <= max_lost:
            advice = self._advice(FIT, positions) if total.truncated else "check the columns and --task"
            raise DataError(
                f"{', '.join(self.sources) or 'data'}: expected at least one row with a supervised token, got none of"
                f" {total.read:,} rows{_reasons(total)}; {advice}."
            )
        if share > max_lost:
            limit = "--max_length" if self.max_length is None else f"--max_length {self.max_length}"
            lost = f"{total.truncated:,} rows, {total.tokens_lost:,} tokens, {total.supervised_lost:,} of them supervised"
            raise CheckFailedError(
                f"Expected {limit} to cut at most {_percent(max_lost)} of the rows (--max_lost {max_lost:g}), got"
                f" {_percent(share)} ({lost});"
                f" {self._advice(max(FIT, 1 - max_lost), positions)}"
                + ("." if nothing else f", or --max_lost {_round_up(share):g} to accept it.")
            )

    def _advice(self, share: float, positions: int | None) -> str:
        length = self.fitting_length(share) or max(self.cut_lengths)
        if positions is not None and length > positions:
            return (
                f"{_percent(share)} of the rows need {length} tokens and the model has places for {positions}: shorten the "
                "rows or take a model with more"
            )
        return f"type --max_length {length} to fit {_percent(share)} of the rows"

    def closes(self) -> None:
        """Check that read + unfolded = train + validation + test + dropped + failed in every source.

        Raises:
            TrainingError: a row is unaccounted for, or was counted twice.
        """
        for name, counts in self.sources.items():
            dropped = sum(counts.dropped.values())
            if counts.read + counts.unfolded != counts.used + dropped + counts.failed:
                raise TrainingError(
                    f"{name}: expected every row to be accounted for, got {counts.read} read + {counts.unfolded} unfolded but"
                    f" {counts.train} train +"
                    f" {counts.validation} validation + {counts.test} test + {dropped} dropped + {counts.failed} failed;"
                    " this is a bug, please report it with the ledger."
                )

    def add(self, other: Ledger) -> None:
        """Take the rows of another account into this one."""
        for name, counts in other.sources.items():
            self.sources[name] = self.source(name) + counts
        self.lengths += other.lengths
        self.cut_lengths += other.cut_lengths

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ledger.json."""
        return {
            "version": FORMAT_VERSION,
            "max_length": self.max_length,
            "sources": {name: counts.as_dict() for name, counts in self.sources.items()},
            "total": self.total.as_dict(),
            "lengths": {str(length): count for length, count in sorted(self.lengths.items())},
            "cut_lengths": {str(length): count for length, count in sorted(self.cut_lengths.items())},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """The ledger that `as_dict` described."""
        if values.get("version") != FORMAT_VERSION:
            raise UsageError(f"Expected a ledger of version {FORMAT_VERSION}, got {values.get('version')!r}; run `fit` again.")
        return cls(
            sources={name: Counts.from_dict(counts) for name, counts in values["sources"].items()},
            max_length=values["max_length"],
            lengths=Counter({int(length): count for length, count in values.get("lengths", {}).items()}),
            cut_lengths=Counter({int(length): count for length, count in values["cut_lengths"].items()}),
        )

    def table(self) -> list[tuple[str, ...]]:
        """Header, one line per source and, if there are several, the total; all as text."""
        header = ("source", "read", "train", "validation", "test", "truncated", "dropped", "failed", "tokens", "supervised")
        lines = [*self.sources.items()]
        if len(lines) > 1:
            lines.append(("total", self.total))
        return [header, *((name, *_cells(counts)) for name, counts in lines)]

    def summary(self) -> str:
        """One line for the log."""
        total = self.total
        stand = f" (they stand for {total.read + total.unfolded:,})" if total.unfolded else ""
        parts = [
            f"{total.read:,} rows read{stand}: {total.train:,} train, {total.validation:,} validation, {total.test:,} test"
        ]
        dropped = sum(total.dropped.values())
        if dropped:
            parts[0] += f", {dropped:,} dropped{_reasons(total)}"
        if total.failed:
            parts[0] += f", {total.failed:,} failed"
        if total.truncated:
            lost = f"{total.tokens_lost:,} tokens lost, {total.supervised_lost:,} of them supervised"
            parts.append(f"{total.truncated:,} truncated ({lost})")
        share = total.supervised / max(1, total.tokens)
        parts.append(f"{total.tokens:,} tokens, {total.supervised:,} supervised ({_percent(share)})")
        if total.role_tokens:
            roles = (f"{role} {total.role_supervised[role]:,}/{count:,}" for role, count in sorted(total.role_tokens.items()))
            parts.append(f"supervised by role: {', '.join(roles)}")
        return "; ".join(parts) + "."


def _cells(counts: Counts) -> tuple[str, ...]:
    dropped = sum(counts.dropped.values())
    numbers = (
        counts.read, counts.train, counts.validation, counts.test, counts.truncated, dropped, counts.failed,
        counts.tokens, counts.supervised,
    )  # fmt: skip
    return tuple(f"{number:,}" for number in numbers)


def _reasons(counts: Counts) -> str:
    reasons = [f"{count:,} {reason}" for reason, count in sorted(counts.dropped.items())]
    return f" ({', '.join(reasons)})" if reasons else ""


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _round_up(share: float) -> float:
    """The share with three digits, never below it, so that what the message advises is accepted."""
    return min(1.0, math.ceil(share * 1000) / 1000)
