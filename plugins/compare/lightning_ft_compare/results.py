"""What a comparison found, as values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lightning_ft.bootstrap import Comparison

FORMAT_VERSION = 1
"""Of comparison.json."""
BY = "task"
"""The column of the breakdown, unless said otherwise."""
SAMPLES = 2000
"""Draws of the bootstrap, unless said otherwise."""
LEVEL = 0.95
"""Coverage of intervals, unless said otherwise."""


@dataclass(frozen=True)
class Model:
    """One of the compared models."""

    letter: str
    """`A` for the baseline, then `B`, `C` ..."""
    name: str
    """What was evaluated, as the evaluation says it; else the folder that the user named."""
    evaluation: Path
    """Where its results.json and predictions.jsonl lie."""
    metrics: Mapping[str, float]
    """Values by metric name."""
    cost: Mapping[str, float]
    """`likelihood_seconds`, `likelihood_tokens`, `generation_seconds`, `generated_tokens`, `peak_memory` (bytes), `parameters`,
    `bytes` (on disk): those that the evaluation noted."""
    run: Path | None = None
    """The run folder with its metrics.jsonl, where the model is one."""

    @property
    def speed(self) -> Mapping[str, float]:
        """Tokens per second of `likelihood` and of `generation`, where they are known."""
        pairs = {
            "likelihood": ("likelihood_tokens", "likelihood_seconds"),
            "generation": ("generated_tokens", "generation_seconds"),
        }
        return {
            name: self.cost[tokens] / self.cost[seconds]
            for name, (tokens, seconds) in pairs.items()
            if self.cost.get(seconds, 0) > 0 and tokens in self.cost
        }


@dataclass(frozen=True)
class Difference:
    """One metric of a model against the baseline."""

    comparison: Comparison
    """Values, difference, interval and p-value; `base` is the baseline's value, `tuned` the model's."""

    @property
    def improvement(self) -> float | None:
        """Change towards the better as a share of the baseline's value; None: no better side, or nothing to divide by."""
        c = self.comparison
        if c.higher_is_better is None or not c.base or not math.isfinite(c.difference):
            return None
        return (1 if c.higher_is_better else -1) * c.difference / abs(c.base) + 0.0  # which makes -0 a zero

    @property
    def worsening(self) -> tuple[float, float]:
        """Interval of how much worse the model is, in the metric's unit; negative: better. NaN where it is unknown."""
        low, high = self.comparison.low, self.comparison.high
        return (-high, -low) if self.comparison.higher_is_better else (low, high)


@dataclass(frozen=True)
class Wins:
    """Rows in which a model is better than, as good as, and worse than the baseline."""

    of: str
    """The metric whose score of a row decides, or `likelihood`: the summed log-likelihood of the row's given answer."""
    win: int
    tie: int
    loss: int


@dataclass(frozen=True)
class Group:
    """The differences within a part of the rows."""

    name: str
    rows: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Change:
    """A row in which the two answers, or likelihoods, are furthest apart."""

    row: str
    prompt: str
    reference: str | None
    answers: tuple[str | None, str | None]
    """Of the baseline and of the model."""
    scores: tuple[float, float]
    """Of the baseline and of the model, by `Pair.ranked_by`."""


@dataclass(frozen=True)
class Judged:
    """What a judge said of a model's answers against the baseline's, by one criterion."""

    criterion: str
    win: int
    """Rows in which both orders prefer the model."""
    tie: int
    """Rows of which both orders say so, whose answers are the same (these are not asked about), or whose orders disagree."""
    loss: int
    same: int
    """Ties because the answers are the same text."""
    inconsistent: int
    """Ties because the verdict changed with the order of the answers."""
    failed: int
    """Rows of which there is no verdict: no answer in time, or one that is not in the format."""
    low: float
    """Interval of the win rate: Wilson's, (Wilson 1927), in which ties count half; NaN without verdicts."""
    high: float
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Why rows failed, and how many did so."""

    @property
    def rows(self) -> int:
        """Rows with a verdict."""
        return self.win + self.tie + self.loss

    @property
    def rate(self) -> float:
        """Share of wins, ties counting half; NaN without verdicts."""
        return (self.win + self.tie / 2) / self.rows if self.rows else math.nan

    @property
    def word(self) -> str:
        """`better` or `worse` where the interval leaves one half out, `no difference shown`, or `not comparable`."""
        from lightning_ft.bootstrap import MIN_ROWS

        if not self.rows:
            return "not comparable"
        if self.rows < MIN_ROWS:
            return "no difference shown"
        return "better" if self.low > 0.5 else "worse" if self.high < 0.5 else "no difference shown"


@dataclass(frozen=True)
class Pair:
    """A model against the baseline."""

    letter: str
    """The model's."""
    differences: tuple[Difference, ...]
    wins: tuple[Wins, ...]
    by_group: tuple[Group, ...]
    """By the values of a column."""
    by_length: tuple[Group, ...]
    """By quarters of the prompts' lengths."""
    ranked_by: str
    """What `better` and `worse` are ranked by, as `Wins.of`."""
    better: tuple[Change, ...]
    worse: tuple[Change, ...]
    judged: tuple[Judged, ...] = ()
    judged_rows: int = 0
    """Rows that the judge was to look at: those that both models have answered."""


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for which, of one model."""

    letter: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row of counts by answer for each class that is right."""


@dataclass(frozen=True)
class Report:
    """A comparison of models on the same rows."""

    models: tuple[Model, ...]
    rows: int
    pairs: tuple[Pair, ...]
    """Each model but the first against the first."""
    confusions: tuple[Confusion, ...]
    """Of classified texts; else none."""
    prompt_lengths: Mapping[int, int]
    """Rows by characters of the prompt."""
    by: str
    """The column of `Pair.by_group`."""
    level: float
    """Coverage of each interval by itself; they are not corrected for their number."""
    samples: int
    """Draws of the bootstrap."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers has to know."""
    refusals: tuple[str, ...] = ()
    """What the gate said no to, a sentence each."""
    judge: str | None = None
    """The model that judged."""
    folder: Path | None = None
    """Where the report was written."""

    @property
    def sentence(self) -> str:
        """The most important result in one sentence."""
        from lightning_ft.bootstrap import coverage

        found = []
        for pair in self.pairs:
            parts = [
                f"{word} in {', '.join(d.comparison.metric for d in group)}"
                for word in ("better", "worse", "changed", "no difference shown")
                if (group := [d for d in pair.differences if d.comparison.word == word])
            ]
            found.append(f"{pair.letter} against {self.models[0].letter}: {'; '.join(parts) or 'nothing to compare'}")
        return f"On {self.rows} rows {'. '.join(found)} ({coverage(self.level)} paired bootstrap intervals)."

    def as_dict(self) -> dict[str, Any]:
        """Plain values for comparison.json; NaN becomes null."""
        values: dict[str, Any] = plain(self)
        for pair, shown in zip(self.pairs, values["pairs"], strict=True):
            groups = zip((*pair.by_group, *pair.by_length), (*shown["by_group"], *shown["by_length"]), strict=True)
            for differences, lines in (
                (pair.differences, shown["differences"]),
                *((group.differences, line["differences"]) for group, line in groups),
            ):
                for difference, line in zip(differences, lines, strict=True):
                    line |= {"improvement": plain(difference.improvement), "word": difference.comparison.word}
            for judged, line in zip(pair.judged, shown["judged"], strict=True):
                line |= {"rows": judged.rows, "rate": plain(judged.rate), "word": judged.word}
        for model, line in zip(self.models, values["models"], strict=True):
            line["tokens_per_second"] = plain(model.speed)
        return {"version": FORMAT_VERSION, "sentence": self.sentence, **values}


def plain(value: Any) -> Any:
    """A value as JSON has it: objects for dataclasses, null for what is no number, text for paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
