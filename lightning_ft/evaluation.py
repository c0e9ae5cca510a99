"""Metrics over scored rows, and the folder that keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lightning_ft.atomic import sha256, strict, write_bytes, write_json, write_text
from lightning_ft.errors import DataError, UsageError, did_you_mean
from lightning_ft.types import Classified, Conversation, Message, Preference, ScoredRow, Text, Unpaired

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lightning_ft.metric import Metric
    from lightning_ft.types import Example

EXAMPLES = {cls.__name__: cls for cls in (Conversation, Text, Preference, Unpaired, Classified)}
RESULTS, PREDICTIONS, STATISTICS = "results.json", "predictions.jsonl", "statistics.safetensors"
FORMAT_VERSION = 2
OTHERS = "(none)"
"""The group of rows that have no value where others have one."""
PREFIX = "prefix"
"""Instead of a column: group rows by what their prompts begin with."""
_BEGINNING = re.compile(r"\s*(?:\[([^\]\n]{1,40})\]|<([^<>\n]{1,40})>|([^\W\d][\w -]{0,39}):(?=\s))")


def prefix_of(example: Example) -> str | None:
    """The name that a prompt begins with, before a colon or in brackets, at most 40 characters; None: it begins with none."""
    if isinstance(example, (Text, Classified)):
        said = example.text
    else:
        turns = example.messages if isinstance(example, Conversation) else example.prompt
        said = next((turn.content for turn in turns if turn.role == "user"), "")
    found = _BEGINNING.match(said)
    return next(name for name in found.groups() if name).strip() if found else None


def as_metrics(metrics: Sequence[Metric | type[Metric] | str]) -> list[Metric]:
    """Instances of metrics given as such, as classes, or by registered name."""
    from lightning_ft.registry import registry

    made = (registry().metrics[metric].cls if isinstance(metric, str) else metric for metric in metrics)
    return [metric() if isinstance(metric, type) else metric for metric in made]


def statistics(metric: Metric, rows: Sequence[ScoredRow]) -> Tensor | None:
    """(N, K) float64 statistics of a metric; None where it has no row to read, or applies to none.

    A metric of text reads the rows that have a prediction, one of candidates those that have candidates, one of pairs
    those with a worse answer, one of likelihoods those with supervised tokens; other rows have zeros, which change no sum. The
    metric's own state is not used, so ranks do not communicate.
    """
    read = [row for row in rows if readable(metric, row)]
    if not read:
        return None
    metric.prepare(read)
    found = [list(metric.statistics(row)) if readable(metric, row) else None for row in rows]
    width = next(len(values) for values in found if values is not None)
    table = torch.tensor([values or [0.0] * width for values in found], dtype=torch.float64)
    return table if bool(table.any()) else None


def readable(metric: Metric, row: ScoredRow) -> bool:
    """Whether a row has what the metric reads."""
    kinds = {
        "text": row.prediction is not None,
        "candidates": row.candidates is not None,
        "pair": row.worse is not None,
        "tokens": row.tokens > 0,
    }
    return kinds[metric.reads]


def group_of(example: Example, key: str) -> str | None:
    """The group of a row: its text or number under a key of `meta`, or what it begins with (`PREFIX`); None: in none."""
    value = prefix_of(example) if key == PREFIX else example.meta.get(key)
    return str(value) if isinstance(value, (str, int, float)) else None


def check_group(by: str, examples: Sequence[Example]) -> None:
    """Refuse to part rows into groups of which none has a row.

    Raises:
        UsageError: it is so; names the columns there are.
    """
    if any(group_of(example, by) is not None for example in examples):
        return
    if by == PREFIX:
        raise UsageError(
            f"Expected rows whose prompts begin with a name, as in `translate: ...`, for --by {PREFIX}; got none among "
            f"{len(examples)}."
        )
    known = list(dict.fromkeys(key for one in examples for key in one.meta if group_of(one, key) is not None))
    have = f"{', '.join(known[:20])}{' ...' if len(known) > 20 else ''}" if known else "none"
    raise UsageError(
        f"Expected --by to be a column of texts or numbers that rows keep beside what is trained or scored ({have}), got "
        f"'{by}'.{did_you_mean(by, known)}"
    )


def compute(metrics: Sequence[Metric | type[Metric] | str], scored: Sequence[ScoredRow]) -> dict[str, float]:
    """Value of each metric by name; a metric that has nothing to read is left out."""
    return Evaluation.of(metrics, scored).metrics


@dataclass(frozen=True)
class Spread:
    """How the scores of single rows differ."""

    std: float
    """Standard deviation over the rows (divided by their number)."""
    low: float
    high: float
    rows: int
    """Rows that have a score."""


@dataclass
class Evaluation:
    """What a model did on held-out rows."""

    metrics: dict[str, float]
    """Values by metric name."""
    rows: list[ScoredRow]
    tables: dict[str, Tensor]
    """(N, K) statistics by metric name: what is resampled for an interval."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else belongs to the result: model, data, sampling, seed, number format ..."""
    folder: Path | None = None
    """Where it was written."""
    spreads: dict[str, Spread] = field(default_factory=dict)
    """By name of each metric that is the mean of a score per row."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows that count for each metric: those that it can read and applies to."""
    signatures: dict[str, str] = field(default_factory=dict)
    """How metrics were computed, where their names do not say it."""
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Values within each group of rows, by the group's name."""
    group_rows: dict[str, int] = field(default_factory=dict)
    """Rows of each group."""
    further: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What metrics found beside their value, by name: the confusion matrix of classes ..."""

    @classmethod
    def of(
        cls,
        metrics: Sequence[Metric | type[Metric] | str],
        rows: Sequence[ScoredRow],
        details: Mapping[str, Any] | None = None,
        *,
        by: str | None = None,
    ) -> Evaluation:
        """Metrics over scored rows.

        A metric that has no row to read (`statistics`) has no value and is left out.

        Args:
            metrics: Instances, classes or names.
            rows: What was scored.
            details: What else belongs to the result.
            by: Key of the rows' `meta` whose values part them into groups; None: no groups.
        """
        made = cls({}, list(rows), {}, dict(details or {}))
        places = made.places(by) if by else {}
        for metric in as_metrics(metrics):
            table = statistics(metric, rows)
            if table is None:
                continue
            name = metric.name
            made.tables[name] = table
            made.metrics[name] = float(metric.finish(table.sum(0)))
            made.counts[name] = int(table.any(1).sum())
            if metric.signature:
                made.signatures[name] = metric.signature
            if metric.per_row:
                made.spreads |= {name: spread} if (spread := _spread(made.scores(name))) else {}
            if more := metric.details([row for row in rows if readable(metric, row)]):
                made.further[name] = dict(more)
            for group, chosen in places.items():
                if bool(table[chosen].any()):
                    made.groups.setdefault(group, {})[name] = float(metric.finish(table[chosen].sum(0)))
        made.group_rows = {group: len(places[group]) for group in made.groups}
        return made

    def scores(self, metric: str) -> Tensor:
        """(N,) float64: each row's first statistic over its second, its score by a metric `per_row`; NaN without one."""
        table = self.tables[metric]
        return torch.where(table[:, 1] != 0, table[:, 0] / table[:, 1], math.nan)

    def places(self, key: str) -> dict[str, list[int]]:
        """Numbers of the rows with each value of a key of `meta`, by that value as text; those without it by themselves.

        Where `key` is `prefix`: by what the first turn, or the text, begins with, as in `translate: ...` or `[translate] ...`.
        """
        out: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            group = group_of(row.example, key)
            if group is not None:
                out.setdefault(group, []).append(i)
        grouped = {i for members in out.values() for i in members}
        rest = [i for i in range(len(self.rows)) if i not in grouped] if out else []
        return dict(sorted(out.items())) | ({OTHERS: rest} if rest else {})

    def write(self, folder: Path) -> None:
        """`predictions.jsonl` (one row a line), `statistics.safetensors`, and at last `results.json` (metrics and details)."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        scores = {name: self.scores(name).tolist() for name in self.spreads}
        lines = []
        for i, row in enumerate(self.rows):
            values = _row_as_dict(row) | {"scores": {name: own[i] for name, own in scores.items()}}
            lines.append(json.dumps(strict(values), ensure_ascii=False, default=str))
        write_text(folder / PREDICTIONS, "".join(f"{line}\n" for line in lines))
        write_bytes(folder / STATISTICS, save({name: table.contiguous() for name, table in self.tables.items()}))
        results = {
            "version": FORMAT_VERSION,
            "metrics": strict(self.metrics),
            "spreads": {name: strict(dataclasses.asdict(spread)) for name, spread in self.spreads.items()},
            "counts": self.counts,
            "signatures": self.signatures,
            "groups": strict(self.groups),
            "group_rows": self.group_rows,
            "further": self.further,
            "rows": len(self.rows),
            "generated": sum(row.prediction is not None for row in self.rows),
            "tokens": sum(row.tokens for row in self.rows),
            "files": {name: sha256(folder / name) for name in (PREDICTIONS, STATISTICS)},
            "details": self.details,
        }
        write_json(folder / RESULTS, results)
        self.folder = folder

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """What `write` left in a folder.

        Raises:
            DataError: files are missing, broken, or of another version.
        """
        from safetensors.torch import load_file

        try:
            results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            if results["version"] != FORMAT_VERSION:
                raise ValueError(f"version {results['version']}, expected {FORMAT_VERSION}")
            lines = [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").split("\n") if line]
            tables = load_file(folder / STATISTICS)
            wrong = next((name for name in results["metrics"] if len(tables[name]) != len(lines)), None)
            if wrong:
                raise ValueError(f"{len(lines)} rows and statistics of {len(tables[wrong])} for {wrong}")
            found = cls(
                {name: float(_number(value)) for name, value in results["metrics"].items()},
                [_row_from_dict(line, number) for number, line in enumerate(lines, start=1)],
                {name: tables[name] for name in results["metrics"]},
                dict(results["details"]), folder,
                {name: Spread(**own) for name, own in results["spreads"].items()},
                results["counts"], results["signatures"],
                {group: {name: _number(v) for name, v in own.items()} for group, own in results["groups"].items()},
                results.get("group_rows", {}),
                results.get("further", {}),
            )  # fmt: skip
            changed = next((name for name, digest in results["files"].items() if sha256(folder / name) != digest), None)
            if changed:  # its statistics would be those of other answers
                raise ValueError(f"a {changed} that was changed after it was written")
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise DataError(
                f"{folder}: expected an evaluation ({RESULTS}, {PREDICTIONS} and {STATISTICS}), got {type(error).__name__}: "
                f"{error}; type `lightning-ft evaluate` to make one."
            ) from error


def _spread(scores: Tensor) -> Spread | None:
    found = scores[~scores.isnan()]
    if not len(found):
        return None
    return Spread(float(found.std(correction=0)), float(found.min()), float(found.max()), len(found))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _row_as_dict(row: ScoredRow) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "example"}
    return values | {"example": {"type": type(row.example).__name__, **dataclasses.asdict(row.example)}}


def _row_from_dict(line: Mapping[str, Any], number: int) -> ScoredRow:
    meta, prediction = line["example"]["meta"], line["prediction"]
    worse = line.get("worse")  # folders of before there were pairs have none
    numbers = (line["nll"], line["tokens"], line["correct"], line["utf8_bytes"], *(worse or ()))
    plain = all(isinstance(one, (int, float, NoneType)) for one in numbers) and isinstance(prediction, (str, NoneType))
    if not plain or not isinstance(meta, dict) or (worse is not None and len(worse) != 2):
        raise ValueError(f"row {number} with values of other types than `evaluate` writes")
    values = {key: value for key, value in line.items() if key not in ("example", "scores")}
    values |= {"nll": _number(line["nll"]), "references": tuple(line["references"])}
    values["worse"] = None if worse is None else (_number(worse[0]), worse[1])
    return ScoredRow(example=example_from_dict(line["example"]), **values)


def example_from_dict(values: Mapping[str, Any]) -> Example:
    """The example that was written as a mapping.

    Raises:
        ValueError: it is none.
    """
    kept = dict(values)
    try:
        cls = EXAMPLES[kept.pop("type")]
        for name in ("messages", "prompt", "chosen", "rejected", "completion"):
            if name in kept:
                kept[name] = tuple(Message(**turn) for turn in kept[name])
        if "tools" in kept:
            kept["tools"] = tuple(kept["tools"])
        return cls(**kept)
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected 'example' as `evaluate` writes it, got {type(error).__name__}: {error}") from error
