"""Flagged rows as a person decides about them: which they are, what was decided so far, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_ft_datatools.findings import KINDS
from lightning_ft_datatools.fix import Cleaned, take_unreadable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from lightning_ft.types import Row
    from lightning_ft_datatools.findings import Finding, Report, Severity
    from lightning_ft_datatools.survey import Survey

Action = Literal["accept", "reject", "edit", "undo"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first."""


@dataclass(frozen=True)
class Flagged:
    """A row with what was found in it, the worst first."""

    row: Row
    findings: tuple[Finding, ...]

    @property
    def kind(self) -> str:
        """Kind of the worst finding; empty where nothing was found."""
        return self.findings[0].kind if self.findings else ""


@dataclass(frozen=True)
class Decision:
    """What a person said of a row."""

    action: Action
    values: Mapping[str, Any] | None = None
    """The row as it was edited."""


def flagged(
    survey: Survey, report: Report, *, kinds: Collection[str] = (), severity: Severity = "warning", everything: bool = False
) -> list[Flagged]:
    """The rows to look at, in the order of the files; rows that cannot be read are not among them.

    Args:
        survey: the rows.
        report: the findings.
        kinds: only these kinds of findings; empty: by severity.
        severity: the least severe findings that count.
        everything: all rows, also those without a finding.
    """
    wanted = set(kinds) or {
        kind for kind, known in KINDS.items() if SEVERITIES.index(known.severity) <= SEVERITIES.index(severity)
    }
    order = list(KINDS)
    found: dict[str, list[Finding]] = {}
    for finding in report.issues:
        if finding.kind in wanted:
            found.setdefault(f"{finding.source}:{finding.line}", []).append(finding)
    out = []
    for row in survey.rows:
        own = sorted(found.get(place_of(row), ()), key=lambda finding: order.index(finding.kind))
        if own or everything:
            out.append(Flagged(row, tuple(own)))
    return out


def place_of(row: Row) -> str:
    """`file:line` of a row as it stands in the file."""
    return f"{row.source}:{row.line}"


class Journal:
    """Decisions, each on disk when it is made: a review that is stopped, or killed, goes on where it was.

    A decision belongs to a place and to what stands there: of a row that has changed since, nothing is decided.

    Args:
        path: the file, which may be there from before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decided: dict[tuple[str, str], Decision] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._take((entry["row"], entry["digest"]), Decision(entry["action"], entry.get("values")))
                except (ValueError, LookupError, TypeError):
                    continue  # the end of a line that a kill cut off: its row is asked again

    def of(self, row: Row) -> Decision | None:
        """What was decided about a row."""
        return self._decided.get(_key(row))

    def decide(self, row: Row, decision: Decision) -> None:
        """Note a decision; `undo` takes the one before back."""
        place, digest = _key(row)
        entry: dict[str, Any] = {"row": place, "digest": digest, "action": decision.action}
        if decision.values is not None:
            entry["values"] = dict(decision.values)
        line = json.dumps(entry, ensure_ascii=True, default=str)
        # On a line of its own also behind one that was cut off.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n" if self._cut() else f"{line}\n")
        self._take((place, digest), decision)

    def _cut(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(0, 2)
            if not file.tell():
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"

    def _take(self, key: tuple[str, str], decision: Decision) -> None:
        if decision.action == "undo":
            self._decided.pop(key, None)
        else:
            self._decided[key] = decision


def _key(row: Row) -> tuple[str, str]:
    text = json.dumps(dict(row.values), sort_keys=True, ensure_ascii=True, default=str)
    return place_of(row), hashlib.sha256(text.encode()).hexdigest()[:16]


def outcome(survey: Survey, report: Report, items: Sequence[Flagged], journal: Journal) -> Cleaned:
    """The kept rows, those taken out, and every change; a row without a decision is kept as it is.

    Args:
        survey: all rows.
        report: for those that cannot be read.
        items: the rows that were looked at.
        journal: the decisions.
    """
    reasons = {place_of(item.row): "; ".join(f"{f.kind}: {f.detail}" for f in item.findings) for item in items}
    done = Cleaned([], [], [])
    for row in survey.rows:
        place, decision = place_of(row), journal.of(row)
        if decision is None or place not in reasons or decision.action == "accept":
            done.kept.append((row, dict(row.values)))
        elif decision.action == "reject":
            reason = f"rejected in a review{': ' if reasons[place] else ''}{reasons[place]}"
            done.taken.append({"row": place, "reason": reason, "values": dict(row.values)})
            done.changes.append({"row": place, "change": "removed", "why": "review"})
        else:
            new = dict(decision.values or {})
            done.kept.append((row, new))
            columns = [column for column in {**row.values, **new} if row.values.get(column) != new.get(column)]
            done.changes.extend({"row": place, "column": column, "change": "edited"} for column in columns)
    take_unreadable(done, report)
    unreadable = sum(finding.kind == "unreadable" for finding in report.issues)
    assert len(done.kept) + len(done.taken) == len(survey.rows) + unreadable
    return done
