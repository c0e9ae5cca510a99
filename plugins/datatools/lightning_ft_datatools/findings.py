"""What checks find: kinds of issues, single findings, and the report of a file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of issue."""

    severity: Severity
    title: str
    advice: str
    """What to do about it."""


KINDS: dict[str, Kind] = {
    "unreadable": Kind("error", "rows that cannot be read", "mend the line, or leave it out: --fix OUT"),
    "format": Kind("error", "rows that lack what the task reads", "fill the columns, or name another --task"),
    "template": Kind("error", "rows that the chat template refuses", "mend the turns, or name another --template"),
    "turns": Kind("error", "unbalanced turns", "end with an assistant turn; let user and assistant take turns"),
    "empty_prompt": Kind("error", "empty prompts", "fill or remove them"),
    "empty_answer": Kind("error", "empty answers", "fill or remove them"),
    "split_leak": Kind("error", "rows of one split that another has too", "remove them from training"),
    "benchmark_leak": Kind("error", "rows that are in a benchmark", "remove them, or do not report that benchmark"),
    "secret": Kind("error", "keys and passwords", "revoke them, then remove them: a model repeats what it was trained on"),
    "marker": Kind("warning", "special tokens or template markers in contents", "remove them: they end or open a turn"),
    "exact_duplicate": Kind("warning", "exact duplicates", "keep one of each: --fix OUT"),
    "near_duplicate": Kind("warning", "near duplicates", "keep one of each"),
    "conflict": Kind("warning", "the same prompt with different answers", "keep the better answer"),
    "same_answers": Kind("warning", "pairs whose two answers are the same", "remove them: they prefer nothing"),
    "short_answer": Kind("warning", "very short answers", "write them out"),
    "vague_answer": Kind("warning", "answers that say nothing", "answer or remove them"),
    "label": Kind("warning", "suspected wrong labels", "look at each: rows of another label read like it"),
    "encoding": Kind("warning", "encoding trouble", "repair it: --fix OUT"),
    "email": Kind("warning", "e-mail addresses", "replace them with a placeholder"),
    "prompt_style": Kind("note", "prompts written unlike the others", "write them alike, or give more of the kind"),
    "answer_style": Kind("note", "answers written unlike the others", "write them alike: a model learns the style first"),
    "language": Kind("note", "rows in another language", "remove them, or give more of them"),
    "off_topic": Kind("note", "rows unlike all others", "look whether they belong here"),
    "cut": Kind("note", "answers that max_length would cut", "raise --max_length, or shorten them"),
}  # fmt: skip
"""Every kind, the worst first."""


@dataclass(frozen=True)
class Finding:
    """One issue of one row."""

    kind: str
    source: str
    line: int
    """1-based line or record; 0: the whole file."""
    detail: str
    part: int = 0
    other: str | None = None
    """`file:line` of the row that it is compared with."""
    raw: str | None = field(default=None, compare=False)
    """Text of a line that cannot be read; not part of the report."""

    @property
    def row(self) -> str:
        """`file:line`."""
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{place}#{self.part}" if self.part else place

    def __str__(self) -> str:
        """The kind, the message, and the row that it is compared with."""
        return f"{self.kind}: {self.detail} {self.other}" if self.other else f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """What `data check` found out about files."""

    files: Sequence[str]
    task: str | None
    """None where no row could be read."""
    model: str
    total_examples: int
    """Examples that could be read and formatted."""
    rows_read: int
    issues: Sequence[Finding]
    lengths: Mapping[str, Any]
    """Tokens of rows: percentiles, histogram, what `max_length` cuts."""
    avg_prompt_length: float
    """Characters."""
    avg_response_length: float
    """Characters."""
    balance: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Examples by file, split, source and class, where there is more than one."""
    languages: Mapping[str, float] = field(default_factory=dict)
    """Share of the examples in each language."""
    diversity: Mapping[str, float] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    """What concerns the data as a whole."""
    advice: Sequence[str] = ()

    @property
    def is_valid(self) -> bool:
        """Whether no issue is an error."""
        return not any(KINDS[finding.kind].severity == "error" for finding in self.issues)

    @property
    def summary(self) -> str:
        """How many rows and examples there are, and of what."""
        rows = f"{self.rows_read:,} row{'s' * (self.rows_read != 1)}"
        if self.task is None:
            return f"{rows}, none of which can be read"
        return f"{rows}, {self.total_examples:,} example{'s' * (self.total_examples != 1)} of the task {self.task}"

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind, the worst kind first."""
        found = Counter(finding.kind for finding in self.issues)
        return {kind: found[kind] for kind in KINDS if kind in found}

    @property
    def quality_report(self) -> str:
        """The report as the terminal shows it."""
        from lightning_ft_datatools.terminal import lines

        return "\n".join(lines(self))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        out = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        known = [{k: v for k, v in dataclasses.asdict(finding).items() if k != "raw"} for finding in self.issues]
        out["issues"] = [entry | {"row": finding.row} for entry, finding in zip(known, self.issues, strict=True)]
        return {"is_valid": self.is_valid, "counts": self.counts, **out}
