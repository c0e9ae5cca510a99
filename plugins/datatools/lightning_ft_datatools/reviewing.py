"""Flagged rows as a person decides about them: which they are, what was decided so far, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from lightning_ft_datatools.findings import KINDS
from lightning_ft_datatools.fix import Cleaned, check_whole
from lightning_ft_datatools.output import append

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from lightning_ft.types import Row
    from lightning_ft_datatools.findings import Finding, Report, Severity
    from lightning_ft_datatools.survey import Survey

Action = Literal["accept", "reject", "edit"]
JOURNAL = ".review.jsonl"
"""Ending of the file with the decisions, instead of `.jsonl`."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first."""
_UNDO = "undo"


@dataclass(frozen=True)
class Flagged:
    """A row to look at."""

    row: Row
    findings: tuple[Finding, ...]
    """All that was found in it, the worst first."""
    kind: str
    """The worst kind among those that were asked for; empty where there is none."""


@dataclass(frozen=True)
class Decision:
    """What a person said of a row."""

    action: Action
    values: Mapping[str, Any] | None = None
    """The row as it was edited."""


def flagged(
    survey: Survey, report: Report, *, kinds: Collection[str] = (), severity: Severity = "warning", everything: bool = False
) -> list[Flagged]:
    """The rows to look at, in the order of the files; lines that cannot be read are not among them.

    Args:
        survey: the rows.
        report: the findings.
        kinds: only rows with these kinds of findings; empty: by severity.
        severity: the least severe findings that count.
        everything: all rows, also those without a finding.
    """
    most = SEVERITIES.index("note" if everything else severity)
    wanted = set(kinds) or {kind for kind, known in KINDS.items() if SEVERITIES.index(known.severity) <= most}
    found = _by_place(report)
    out = []
    for row in survey.rows:
        own = found.get(place_of(row), ())
        kind = next((finding.kind for finding in own if finding.kind in wanted), "")
        if kind or everything:
            out.append(Flagged(row, tuple(own), kind))
    return out


def place_of(row: Row) -> str:
    """`file:line` of a row as it stands in the file."""
    return f"{row.source}:{row.line}"


def _by_place(report: Report) -> dict[str, list[Finding]]:
    """The findings of each row in the report's order: the worst first."""
    found: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.issues:
        found[f"{finding.source}:{finding.line}"].append(finding)
    return found


class Journal:
    """Decisions, each on disk when it is made: a review that is stopped, or killed, goes on where it was.

    A decision belongs to a place and to what stands there: of a row that has changed since, nothing is decided.

    Args:
        path: the file, which may be there from before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decided: dict[tuple[str, str], Decision] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.split("\n"):
            self._read(line)

    def of(self, row: Row) -> Decision | None:
        """What was decided about a row."""
        return self._decided.get(_key(row))

    def decide(self, rows: Sequence[Row], decision: Decision) -> None:
        """Note a decision about rows.

        Raises:
            UsageError: the disk takes no more.
        """
        self._note(rows, decision.action, decision.values)
        self._decided.update(dict.fromkeys(map(_key, rows), decision))

    def undo(self, rows: Sequence[Row]) -> None:
        """Note that nothing is decided about rows. The same error."""
        self._note(rows, _UNDO)
        for row in rows:
            self._decided.pop(_key(row), None)

    def _note(self, rows: Sequence[Row], action: str, values: Mapping[str, Any] | None = None) -> None:
        entries = [{"row": place, "digest": digest, "action": action} for place, digest in map(_key, rows)]
        more = {} if values is None else {"values": dict(values)}
        lines = (json.dumps(entry | more, ensure_ascii=True, default=str) + "\n" for entry in entries)
        append(self.path, "".join(lines))

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            key, action, values = (str(entry["row"]), str(entry["digest"])), entry["action"], entry.get("values")
        except (ValueError, LookupError, TypeError):
            return  # a line that a kill cut off: its row is asked again
        if action == _UNDO:
            self._decided.pop(key, None)
        elif action in get_args(Action) and isinstance(values, dict) == (action == "edit"):
            self._decided[key] = Decision(cast("Action", action), values)


def _key(row: Row) -> tuple[str, str]:
    return place_of(row), hashlib.sha256(same(row.values).encode()).hexdigest()[:16]


def same(values: Mapping[str, Any]) -> str:
    """A text that two rows have in common only if a file would hold the same for both; 1 and true are not the same."""
    return json.dumps(dict(values), sort_keys=True, ensure_ascii=True, default=str)


def outcome(survey: Survey, report: Report, journal: Journal) -> Cleaned:
    """The kept rows, those taken out, and every change; a row without a decision is kept as it is.

    Decisions count for all rows, also for those that other options had shown earlier.

    Args:
        survey: all rows.
        report: what was found in them, and the lines that cannot be read.
        journal: the decisions.
    """
    check_whole(report)
    found = _by_place(report)
    done = Cleaned([], [], [])
    for row in survey.rows:
        place, decision = place_of(row), journal.of(row)
        if decision is None or decision.action == "accept":
            done.kept.append((row, dict(row.values)))
        elif decision.action == "reject":
            reasons = "; ".join(map(str, found.get(place, ())))
            done.take_out(place, f"rejected in a review{': ' if reasons else ''}{reasons}", "review", row.values)
        else:
            new = dict(decision.values or {})
            done.kept.append((row, new))
            columns = [column for column in {**row.values, **new} if _differs(column, row.values, new)]
            done.changes.extend({"row": place, "column": column, "change": "edited"} for column in columns)
    done.take_out_unreadable(report)
    assert len(done.kept) + len(done.taken) == report.rows_read
    return done


def _differs(column: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (column in one) != (column in other) or same({"": one[column]}) != same({"": other[column]})
