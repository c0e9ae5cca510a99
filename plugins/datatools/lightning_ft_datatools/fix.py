"""`data check --fix`: the rows without what is wrong with them, those taken out, and every change on record."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import DataError, UsageError
from lightning_ft_datatools.findings import KINDS
from lightning_ft_datatools.output import write_rows
from lightning_ft_datatools.targets import check_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lightning_ft.types import Row
    from lightning_ft_datatools.findings import Finding, Report
    from lightning_ft_datatools.survey import Survey

QUARANTINE, CHANGES = ".quarantine.jsonl", ".changes.jsonl"
"""Endings of the files beside the kept rows, instead of `.jsonl`."""
REMOVED = ("exact_duplicate", "near_duplicate")
"""Kinds beside the errors that take a row out."""
_BLANKS = re.compile(r"[^\S\n]+")
_LINE = re.compile(r"([^\S\n]*)(.*?)\s*")
"""What a line begins with, and the rest up to the blanks at its end."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_CODE = re.compile(r"```|^(?: {4}|\t)|^(?:def|class|import|from|#include|function|SELECT) ", re.MULTILINE)


@dataclass(frozen=True)
class Fixed:
    """What `fix` wrote."""

    cleaned: Path
    quarantine: Path
    changes: Path
    kept: int
    changed: int
    removed: int

    def summary(self) -> str:
        """One line for the terminal."""
        return (
            f"fixed: {self.cleaned} (kept: {self.kept:,}, changed among them: {self.changed:,}), {self.quarantine} (taken out:"
            f" {self.removed:,}), {self.changes} (every change)"
        )


@dataclass(frozen=True)
class Cleaned:
    """Rows without what is wrong with them, those taken out, and every change."""

    kept: list[tuple[Row, dict[str, Any]]]
    """The row as it was read, and its values cleaned."""
    taken: list[dict[str, Any]]
    changes: list[dict[str, str]]

    def take_out(
        self, place: str, reason: str, why: str, values: Mapping[str, Any] | None = None, *, raw: str | None = None
    ) -> None:
        """Put a row into the quarantine: its values, or of a line that cannot be read the text (its first 2^20 characters)."""
        entry: dict[str, Any] = {"row": place, "reason": reason}
        self.taken.append(entry | ({"raw": raw} if values is None else {"values": dict(values)}))
        self.changes.append({"row": place, "change": "removed", "why": why})

    def take_out_unreadable(self, report: Report) -> None:
        """Put all lines that cannot be read into the quarantine."""
        for finding in report.issues:
            if finding.kind == "unreadable":
                self.take_out(finding.row, str(finding), finding.kind, raw=finding.raw)

    def write(self, beside: Path) -> tuple[Path, Path]:
        """Write `*.quarantine.jsonl` and `*.changes.jsonl` beside a file."""
        paths = beside.with_suffix(QUARANTINE), beside.with_suffix(CHANGES)
        write_rows(paths[0], self.taken)
        write_rows(paths[1], self.changes)
        return paths

    def save(self, path: Path) -> tuple[Path, Path]:
        """Write the kept rows and, before them, what is beside them."""
        paths = self.write(path)
        write_rows(path, [values for _, values in self.kept])
        return paths

    @property
    def changed(self) -> int:
        """Rows that were kept, but not as they were."""
        return len({change["row"] for change in self.changes if change["change"] != "removed"})


def fix(survey: Survey, report: Report, out: str, *, lower: bool = False) -> Fixed:
    """Write the cleaned rows as JSONL, beside them `*.quarantine.jsonl` and `*.changes.jsonl`.

    Args:
        survey: the rows.
        report: the findings.
        out: a .jsonl file.
        lower: put all texts in lower case.

    Raises:
        UsageError: `out` is no .jsonl file, it or a file beside it was read, or there is no folder for it; or `lower` would
            break the layout that the task reads within a text.
        DataError: no row would be left.
    """
    path = fix_target(out, [str(file) for file in survey.files])
    cleaned = clean(survey, report, lower=lower)
    if not cleaned.kept:
        raise DataError(f"{survey.files[0]}: expected rows that are left after cleaning, got none; mend them first.")
    quarantine, record = cleaned.save(path)
    return Fixed(path, quarantine, record, len(cleaned.kept), cleaned.changed, len(cleaned.taken))


def fix_target(out: str, names: Sequence[str]) -> Path:
    """The file for the cleaned rows; errors as of `check_rows`."""
    return check_rows(out, names, "--fix", (QUARANTINE, CHANGES))


def clean(survey: Survey, report: Report, *, lower: bool = False) -> Cleaned:
    """Take rows with errors and duplicates out and clean the texts of the others.

    A row that stands for several goes only if all of them are bad. Texts are repaired (UTF-8 that was read as something
    else), composed (Unicode NFC), freed of characters that nobody can see and of superfluous white space; code keeps its
    white space, and every line what it begins with.

    Raises:
        DataError: a file could not be read to its end, or no row would be left.
    """
    check_whole(report)
    reasons = _reasons(survey, report.issues)
    cleaned = Cleaned([], [], [])
    code = survey.task is not None and survey.task.name == "code"
    for row in survey.rows:
        place = f"{row.source}:{row.line}"
        if place in reasons:
            cleaned.take_out(place, str(reasons[place]), reasons[place].kind, row.values)
            continue
        values, done = _clean(dict(row.values), lower, survey.code, code=code)
        if lower and survey.task is not None and survey.task.recognizes(row.values) > survey.task.recognizes(values):
            raise UsageError(
                f"Expected --lower for rows without a layout of their own, got {place} of task {survey.task.name}; convert the"
                " rows first: lightning-ft data convert FILE --to messages --output OUT."
            )
        if row.id in survey.moved:
            done.append(("split", "as its file is named"))
        cleaned.kept.append((row, values))
        cleaned.changes.extend({"row": place, "column": column, "change": what} for column, what in done)
    cleaned.take_out_unreadable(report)
    return cleaned


def check_whole(report: Report) -> None:
    """Refuse files of which nobody knows all rows.

    Raises:
        DataError: one could not be read to its end.
    """
    for finding in report.issues:
        if finding.kind == "unreadable" and not finding.line:
            what = "expected a file that can be read to its end, or rows would be lost"
            raise DataError(f"{finding.source}: {what}; mend it.")


def _reasons(survey: Survey, issues: Iterable[Finding]) -> dict[str, Finding]:
    """Why a row is taken out, by `file:line`; of a row that stands for several, all must be bad."""
    parts: dict[str, int] = {}
    for record in survey.records:
        place = f"{record.row.source}:{record.row.line}"
        parts[place] = parts.get(place, 0) + 1
    bad: dict[str, dict[int, Finding]] = {}

    def gone() -> dict[str, Finding]:
        return {place: next(iter(found.values())) for place, found in bad.items() if len(found) >= parts.get(place, 1)}

    copies = []
    for finding in issues:
        if finding.kind in REMOVED:
            copies.append(finding)
        elif KINDS[finding.kind].severity == "error":
            bad.setdefault(f"{finding.source}:{finding.line}", {}).setdefault(finding.part, finding)
    wrong, replaced = gone(), set()
    for finding in copies:
        place, other = f"{finding.source}:{finding.line}", re.sub(r"#\d+$", "", finding.other or "")
        if other in wrong and other not in replaced and place not in wrong:  # one copy stays in place of a row that goes
            replaced.add(other)
        else:
            bad.setdefault(place, {}).setdefault(finding.part, finding)
    return gone()


def _clean(
    value: Any, lower: bool, columns_of_code: frozenset[str], column: str = "", *, code: bool = False
) -> tuple[Any, list[tuple[str, str]]]:
    """A value with its texts cleaned, and (column, what was done) for each that changed."""
    if isinstance(value, str):
        text, done = clean_text(value, lower=lower, code=code)
        return text, [(column, what) for what in done]
    if isinstance(value, dict):
        pairs = {
            key: _clean(part, lower, columns_of_code, f"{column}.{key}".lstrip("."), code=code or key in columns_of_code)
            for key, part in value.items()
        }
        return {key: part for key, (part, _) in pairs.items()}, [entry for _, done in pairs.values() for entry in done]
    if isinstance(value, list):
        items = [_clean(part, lower, columns_of_code, f"{column}[{i}]", code=code) for i, part in enumerate(value)]
        return [part for part, _ in items], [entry for _, done in items for entry in done]
    return value, []


def clean_text(text: str, *, lower: bool = False, code: bool = False) -> tuple[str, list[str]]:
    """A text repaired and normalised, and what was done, in order.

    Args:
        text: any.
        lower: put it in lower case.
        code: leave its white space as it is, as where it looks like code.
    """
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    done = []

    def take(what: str, new: str) -> str:
        if new != text:
            done.append(what)
        return new

    if not text.isascii():
        if is_bad(text):
            text = take("encoding repaired", fix_encoding(text))
        text = take("Unicode composed", unicodedata.normalize("NFC", text))
    text = take("invisible characters removed", _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
    if not code and not _CODE.search(text):
        # What a line begins with may be a meaning: nested lists, YAML, code that is not told from prose.
        lines = (found[1] + _BLANKS.sub(" ", found[2]) for line in text.split("\n") if (found := _LINE.fullmatch(line)))
        clean = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n").rstrip()
        # What all of several lines begin with may be a meaning, too.
        all_begin = "\n" in clean and all(line.startswith("  ") for line in clean.split("\n") if line)
        text = take("white space", clean if all_begin else clean.lstrip())
    if lower:
        text = take("lower case", text.lower())
    return text, done
