"""Is the tuned model better? Paired bootstrap intervals for the difference of every metric, on the same held-out rows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.atomic import strict
from lightning_ft.errors import UsageError
from lightning_ft.evaluation import as_metrics
from lightning_ft.signs import Sign

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.table import Table
    from torch import Tensor

    from lightning_ft.evaluation import Evaluation
    from lightning_ft.metric import Metric

MIN_ROWS = 10
"""Fewer rows never decide: a percentile interval is too narrow on so few (with one row it has no width at all)."""
SHOWN = 8
"""Samples that a verdict keeps."""
CELLS = 4_000_000
"""Most cells of the matrix of draws that exists at a time (32 MB)."""
FORMAT_VERSION = 1


def coverage(level: float) -> str:
    """How much an interval covers, as people write it: `95%` for 0.95."""
    return f"{100 * level:g}%"


@dataclass(frozen=True)
class Comparison:
    """One metric of the base and of the tuned model, and what the bootstrap says about their difference."""

    metric: str
    base: float
    tuned: float
    difference: float
    """tuned - base."""
    low: float
    """Lower end of the interval of the difference; NaN where it cannot be computed."""
    high: float
    p_value: float
    """Two-sided: twice the smaller share of resamples on one side of zero."""
    better: bool | None
    """Whether the tuned model is better; None: no difference shown, as zero is inside the interval or rows are too few."""
    rows: int
    """Rows that count for the metric, of either model: fewer than all where it does not apply to each."""
    level: float = 0.95
    higher_is_better: bool | None = True
    percent: bool = False

    @property
    def direction(self) -> str:
        """Which values are the better ones."""
        if self.higher_is_better is None:
            return "neither is better"
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    @property
    def word(self) -> str:
        """`better`, `worse`, `changed` where neither side is better, `no difference shown`, or `not comparable`."""
        if not math.isfinite(self.low):
            return "not comparable"
        if self.higher_is_better is None:
            return "changed" if self.rows >= MIN_ROWS and (self.low > 0 or self.high < 0) else "no difference shown"
        return "no difference shown" if self.better is None else "better" if self.better else "worse"

    def shown(self, value: float, *, signed: bool = False) -> str:
        """A value of this metric for people: shares in per cent, differences of shares in percentage points (pp)."""
        if not math.isfinite(value):
            return "n/a"
        sign = "+" if signed else ""
        if self.percent:
            return f"{100 * value:{sign}.1f} {'pp' if signed else '%'}"
        digits = max(0, 3 - int(f"{value:.3e}".partition("e")[2]))  # four digits that count, of the rounded value
        return f"{value:{sign}.{min(digits, 6)}f}" if abs(value) < 1e6 else f"{value:{sign}.3e}"

    @property
    def interval(self) -> str:
        """`[low, high]` for people."""
        low, high = self.shown(self.low, signed=True), self.shown(self.high, signed=True)
        return f"[{low}, {high}]" if math.isfinite(self.low) else "n/a"


def paired_bootstrap(
    metric: Metric | type[Metric],
    base_table: Tensor,
    tuned_table: Tensor,
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Percentile interval of `finish(w @ tuned) - finish(w @ base)` over draws of the rows with replacement.

    `w` counts how often each of the N rows was drawn, so both models are always judged on the same draw (Koehn 2004,
    "Statistical Significance Tests for Machine Translation Evaluation"; percentile interval and number of samples: Efron
    and Tibshirani 1993, chapter 13). Rows are taken to be independent. Intervals of several metrics are not corrected for
    their number.

    Args:
        metric: What finishes a sum of statistics.
        base_table: (N, K) statistics of the base model.
        tuned_table: (N, K) statistics of the tuned model, same rows in the same order.
        samples: Number of draws.
        seed: Decides the draws.
        level: Coverage of the interval.

    Raises:
        UsageError: the tables are of different shape or empty.
    """
    one = as_metrics([metric])[0]
    if base_table.shape != tuned_table.shape or base_table.ndim != 2 or not len(base_table):
        raise UsageError(
            f"Expected statistics of the same held-out rows for both models, got {tuple(base_table.shape)} and "
            f"{tuple(tuned_table.shape)}; evaluate both on one file."
        )
    tables = torch.stack([base_table, tuned_table]).double()  # (2, N, K)
    rows = int((tables != 0).any(-1).any(0).sum())
    base, tuned = one.finish(tables.sum(1)).tolist()
    draws = torch.cat([one.finish(counts @ tables) for counts in _draws(len(base_table), samples, seed)], dim=1)  # (2, samples)
    differences = draws[1] - draws[0]
    low = high = p_value = math.nan
    better = None
    if bool(torch.isfinite(differences).all()):
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.quantile(differences, ends).tolist()
        p_value = min(1.0, 2 * min(float((differences <= 0).double().mean()), float((differences >= 0).double().mean())))
        if rows >= MIN_ROWS and (low > 0 or high < 0) and one.higher_is_better is not None:
            better = (low > 0) == one.higher_is_better
    return Comparison(
        one.name, base, tuned, tuned - base, low, high, p_value, better, rows, level, one.higher_is_better, one.percent
    )  # fmt: skip


def _draws(rows: int, samples: int, seed: int) -> Iterator[Tensor]:
    """(S, N) float64 counts of rows, S draws at a time."""
    generator = torch.Generator().manual_seed(seed)
    left = samples
    while left:
        size = min(left, max(1, CELLS // rows))
        drawn = torch.randint(rows, (size, rows), generator=generator)
        yield torch.zeros(size, rows, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(size, rows, dtype=torch.float64))
        left -= size


@dataclass
class Verdict:
    """What training changed, metric by metric, with answers before and after."""

    comparisons: list[Comparison]
    samples: list[dict[str, Any]] = field(default_factory=list)
    """`row`, `prompt`, `reference`, `before`, `after`."""
    rows: int = 0
    """Held-out rows that both models saw."""
    retention: list[Comparison] = field(default_factory=list)
    """The same of general text, on which the tuned model should not be worse."""
    signs: list[Sign] = field(default_factory=list)
    """What looks wrong in the course of the run."""

    @property
    def worse(self) -> list[str]:
        """Metrics in which the tuned model is worse."""
        return [c.metric for c in self.comparisons if c.better is False]

    @property
    def better(self) -> list[str]:
        """Metrics in which the tuned model is better."""
        return [c.metric for c in self.comparisons if c.better]

    def sentence(self) -> str:
        """The verdict in one sentence."""
        if not self.comparisons:
            return f"On {self.rows} held-out rows nothing could be compared."
        found = []
        for word in ("better", "worse", "changed", "no difference shown", "not comparable"):
            group = [c for c in self.comparisons if c.word == word]
            if group:
                found.append(f"{word} in {', '.join(f'{c.metric} ({c.shown(c.base)} -> {c.shown(c.tuned)})' for c in group)}")
        few = f" (fewer than {MIN_ROWS} never decide)" if self.rows < MIN_ROWS else ""
        level = f"{coverage(self.comparisons[0].level)} paired bootstrap intervals"
        kept = [
            f" On {c.rows} general texts: {c.word} in {c.metric} ({c.shown(c.base)} -> {c.shown(c.tuned)})."
            for c in self.retention[:1]
        ]
        return f"Tuned against base model on {self.rows} held-out rows{few}: {'; '.join(found)} ({level}).{''.join(kept)}"

    def table(self) -> Table:
        """The comparisons for the terminal."""
        from rich.table import Table
        from rich.text import Text

        level = coverage(self.comparisons[0].level) if self.comparisons else "95%"
        table = Table("metric", title=f"base and tuned model on {self.rows} held-out rows", title_justify="left")
        for name in ("base", "tuned", "difference", f"{level} interval"):
            table.add_column(name, justify="right")
        table.add_column("tuned is")
        styles = {"better": "green", "worse": "red", "changed": "", "no difference shown": "dim", "not comparable": "red"}
        for c in (*self.comparisons, *(dataclasses.replace(c, metric=f"general text: {c.metric}") for c in self.retention)):
            name = f"{c.metric} ({c.direction})"
            cells = (name, c.shown(c.base), c.shown(c.tuned), c.shown(c.difference, signed=True), c.interval)
            table.add_row(*(Text(cell) for cell in cells), Text(c.word, styles[c.word]))
        return table

    def as_dict(self) -> dict[str, Any]:
        """Plain values for verdict.json; NaN becomes null."""
        plain, kept = ([strict(dataclasses.asdict(c)) for c in some] for some in (self.comparisons, self.retention))
        head = {"version": FORMAT_VERSION, "sentence": self.sentence(), "rows": self.rows}
        found = [sign.as_dict() for sign in self.signs]
        return head | {"comparisons": plain, "retention": kept, "signs": found, "samples": self.samples}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """The verdict that `as_dict` described.

        Raises:
            UsageError: it is of another version.
        """
        if values.get("version") != FORMAT_VERSION:
            raise UsageError(f"Expected a verdict of version {FORMAT_VERSION}, got {values.get('version')!r}; run `fit` again.")
        numbers = ("base", "tuned", "difference", "low", "high", "p_value")
        found, kept = (
            [Comparison(**(dict(c) | {name: math.nan if c[name] is None else c[name] for name in numbers})) for c in some]
            for some in (values["comparisons"], values.get("retention", ()))
        )
        seen = [Sign(**sign) for sign in values.get("signs", ())]
        return cls(found, [dict(sample) for sample in values["samples"]], values["rows"], kept, seen)


def compare(
    metrics: Sequence[Metric | type[Metric] | str], base: Evaluation, tuned: Evaluation, *, samples: int = 2000, seed: int = 0
) -> Verdict:
    """The verdict over two evaluations of the same rows, for the metrics that both have.

    Raises:
        UsageError: the evaluations are of different rows.
    """
    ours, theirs = [row.row for row in base.rows], [row.row for row in tuned.rows]
    if ours != theirs:
        differing = (f"{a} and {b}" for a, b in zip(ours, theirs, strict=False) if a != b)
        raise UsageError(
            "Expected two evaluations of the same rows in the same order, got "
            f"{next(differing, f'{len(ours)} and {len(theirs)} rows')}; evaluate both models on one file."
        )
    both = [m for m in as_metrics(metrics) if m.name in base.tables and m.name in tuned.tables]
    found = [paired_bootstrap(m, base.tables[m.name], tuned.tables[m.name], samples=samples, seed=seed) for m in both]
    return Verdict(found, _samples(base, tuned), len(base.rows))


def _samples(base: Evaluation, tuned: Evaluation) -> list[dict[str, Any]]:
    """Answers before and after, of rows spread evenly over the set."""
    both = zip(base.rows, tuned.rows, strict=True)
    pairs = [(a, b) for a, b in both if a.prediction is not None and b.prediction is not None]
    chosen = [pairs[i * len(pairs) // min(SHOWN, len(pairs))] for i in range(min(SHOWN, len(pairs)))]
    return [
        {
            "row": a.row, "prompt": a.prompt or "", "reference": a.references[0] if a.references else None,
            "before": a.prediction, "after": b.prediction,
        }
        for a, b in chosen
    ]  # fmt: skip
