"""Rows that cannot be read: collected over all files, then an error or a quarantine file."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_ft.atomic import write_text
from lightning_ft.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_LISTED = 20
"""Problems that are listed one by one."""
MAX_SKIPPED = 0.01
"""Share of unreadable rows that `--on_error skip` allows."""
SKIP = "--on_error skip (up to 1 % of the rows)"
MAX_RAW = 2**20
"""Characters of an unreadable record that go into the quarantine file."""


@dataclass(frozen=True)
class Problem:
    """One record, or (line 0) one file, that cannot be read."""

    source: str
    line: int
    reason: str
    raw: str = ""
    whole: bool = False
    """The file cannot be read on from there, so that there is no row to leave out."""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}" if self.line else f"{self.source}: {self.reason}"


class BadRows:
    """Collects unreadable rows over all files, and decides at the end whether they stop the run.

    `fail`: any of them does, and the message says how they are left out (`skip_by`). `skip`: up to 1 % of the rows are left
    out and written to the quarantine file, one JSON object per line with `file`, `line`, `reason` and `raw` (the first 2^20
    characters of the record).
    """

    def __init__(self, policy: Literal["fail", "skip"], quarantine: Path | None = None, *, skip_by: str = SKIP) -> None:
        self.policy = policy
        self.skip_by = skip_by
        self.quarantine = quarantine
        self.problems: list[Problem] = []
        self.count = 0
        self.unreadable = 0
        """Those among `count` that could not even be read."""
        self.whole = False
        """Whether a file could not be read on."""
        self.muted = False
        """Problems are passed over, as somebody else has counted them."""

    def add(self, source: str, line: int, reason: str, raw: bytes | str = "") -> None:
        """Note an unreadable row; `reason` says what was expected and what came."""
        self.unreadable += not self.muted
        self._note(source, line, reason, raw)

    def refuse(self, source: str, line: int, reason: str, raw: bytes | str = "") -> None:
        """Note a row that could be read but not used."""
        self._note(source, line, reason, raw)

    def _note(self, source: str, line: int, reason: str, raw: bytes | str = "", *, whole: bool = False) -> None:
        if self.muted:
            return
        self.count += 1
        if self.policy == "skip" or len(self.problems) < MAX_LISTED:
            text = raw if isinstance(raw, str) else raw[: 4 * MAX_RAW].decode("utf-8", "backslashreplace")
            self.problems.append(Problem(source, line, reason, text[:MAX_RAW] if self.policy == "skip" else "", whole))

    def fatal(self, source: str, line: int, reason: str) -> None:
        """Note a file that cannot be read (on), which no policy skips.

        Raises:
            DataError: the policy is `skip`, under which the problem would otherwise pass as a single row.
        """
        if self.policy == "skip":
            raise DataError(f"{Problem(source, line, reason)}.")
        self.unreadable += not self.muted
        self.whole |= not self.muted
        self._note(source, line, reason, whole=True)

    def finish(self, total: int) -> int:
        """The number of rows left out; may be called again when more were added.

        Args:
            total: all rows that were met, unreadable ones included.

        Raises:
            DataError: more rows are unreadable than the policy allows.
        """
        if not self.count:
            return 0
        if self.policy == "fail":
            skippable = not self.whole
            if self.count > 1:
                leave = f", or leave them out with {self.skip_by}" if skippable else ""
                raise DataError(
                    f"Expected every row to be readable, got {self.count:,} that are not; mend them{leave}:{self._listing()}"
                )
            (only,) = self.problems
            mend = "" if _says_how(only.reason) else "; mend it"
            raise DataError(f"{only}{mend}, or leave it out with {self.skip_by}." if skippable else f"{only}{mend}.")
        if self.count > MAX_SKIPPED * total:
            raise DataError(
                f"Expected --on_error skip to leave out at most 1 % of the rows, got {self.count:,} of {total:,} that are"
                f" unreadable; mend them:{self._listing()}"
            )
        if self.quarantine is not None:
            self._write(self.quarantine)
        return self.count

    def as_list(self) -> list[dict[str, Any]]:
        """The problems so far in plain values."""
        return [asdict(problem) for problem in self.problems]

    def take(self, problems: Sequence[dict[str, Any]]) -> None:
        """Go on from problems that `as_list` described, instead of those noted so far; for the policy `skip`."""
        self.problems = [Problem(**problem) for problem in problems]
        self.count = len(self.problems)

    def _listing(self) -> str:
        files = list(dict.fromkeys(problem.source for problem in self.problems))
        # Rows that cannot be read are met some way ahead of those that the task refuses.
        listed = sorted(self.problems, key=lambda problem: (files.index(problem.source), problem.line))[:MAX_LISTED]
        rest = [f"and {self.count - len(listed):,} more"] if self.count > len(listed) else []
        return "".join(f"\n  {line}" for line in [*listed, *rest])

    def _write(self, path: Path) -> None:
        lines = ({"file": p.source, "line": p.line, "reason": p.reason, "raw": p.raw} for p in self.problems)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _says_how(reason: str) -> bool:
    """Whether a reason ends with how it is mended, behind a semicolon; those within what it quotes do not count."""
    return "; " in re.sub(r"""'[^']*'|"[^"]*\"""", "", reason)
