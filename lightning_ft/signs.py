"""Signs of trouble in a run, each a stated rule over its lines in metrics.jsonl, with the option to change.

A rule fires only on what is larger than the noise of the lines that it looks at, so that a healthy run has no sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft.curves import read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lightning_ft.bootstrap import Comparison

FEWEST = 10
"""Training lines below which their course is not judged."""
LEAST = 0.02
"""What a smaller loss counts as (nats): how it moves below is no trouble, as after learning by heart or on pairs told apart."""
SURE = 3.0
"""Standard errors by which two ends of a course must differ."""


@dataclass(frozen=True)
class Sign:
    """Something that looks wrong."""

    name: str
    found: str
    """What was seen, in numbers."""
    rule: str
    """When the sign is given."""
    change: str
    """Which options to change, and how."""

    def sentence(self) -> str:
        """For people."""
        return f"{self.name}: {self.found}; {self.change}."

    def as_dict(self) -> dict[str, str]:
        """Plain values for verdict.json."""
        return {"name": self.name, "found": self.found, "rule": self.rule, "change": self.change}


class Course:
    """The lines of a run: (n,) training losses in order, and validation losses with their steps."""

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.train = _column(lines, "loss")
        self.train_steps = np.array([line["step"] for line in lines if "loss" in line], dtype=float)
        self.validation = _column(lines, "val_loss")
        self.validation_steps = np.array([line["step"] for line in lines if "val_loss" in line], dtype=float)
        self.end = max(3, len(self.train) // 5)
        """Lines of each end of the training course: a fifth."""

    @property
    def long_enough(self) -> bool:
        """Whether there are training losses enough, all of them numbers."""
        return len(self.train) >= FEWEST and bool(np.isfinite(self.train).all())

    def part(self, centre: float) -> float:
        """Mean training loss over a fifth of the lines, around a place between 0 (the first) and 1 (the last)."""
        start = round(centre * (len(self.train) - self.end))
        return float(self.train[start : start + self.end].mean())

    @property
    def error(self) -> float:
        """Standard error of the difference of two such means, from how neighbouring lines differ."""
        noise = float(np.diff(self.train).std()) / math.sqrt(2)
        return noise * math.sqrt(2 / self.end)

    @property
    def fall(self) -> float:
        """From the first to the last fifth of the training course."""
        return self.part(0) - self.part(1)


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    found = np.array([math.nan if line[key] is None else line[key] for line in lines if key in line], dtype=float)
    counted: NDArray[np.float64] = np.maximum(found, LEAST)
    return counted


def divergence(course: Course) -> str | None:
    """A loss is not finite, or the last fifth of the training losses is above the first by 10 % and 3 standard errors."""
    for name, values in (("training", course.train), ("validation", course.validation)):
        if not np.isfinite(values).all():
            return f"a {name} loss is {values[~np.isfinite(values)][0]}"
    if not course.long_enough or -course.fall < max(0.1 * course.part(0), SURE * course.error):
        return None
    return f"training loss rises from {course.part(0):.4g} to {course.part(1):.4g}"


def not_falling(course: Course) -> str | None:
    """The last fifth of the training losses is below the first by less than 1 % or 2 standard errors (or a little above)."""
    if not course.long_enough or divergence(course) or course.part(0) <= LEAST + 1e-9:
        return None
    if course.fall >= max(0.01 * course.part(0), 2 * course.error):
        return None
    return f"training loss is {course.part(0):.4g} at the beginning and {course.part(1):.4g} at the end"


def slow_convergence(course: Course) -> str | None:
    """Of the fall of the training loss, which is more than 3 standard errors, at least 40 % is in the second half."""
    if not course.long_enough or course.fall < max(0.01 * course.part(0), SURE * course.error):
        return None
    second = course.part(0.5) - course.part(1)
    if second < max(0.4 * course.fall, SURE * course.error):
        return None
    return f"{100 * second / course.fall:.0f} % of the fall of the training loss is in the second half of the run"


def underfitting(course: Course) -> str | None:
    """The last validation falls by 1 % or more and by half of the mean fall, and training is not below validation."""
    losses = course.validation
    if not course.long_enough or len(losses) < 3 or not np.isfinite(losses).all():
        return None
    falls = -np.diff(losses)
    last = falls[-1]
    if (falls <= 0).any() or last < 0.01 * losses[-1] or last < 0.5 * falls.mean() or course.part(1) < 0.98 * losses[-1]:
        return None
    return f"validation loss still falls by {last:.3g} to {losses[-1]:.4g}, and training loss is {course.part(1):.4g}"


def overfitting(course: Course) -> str | None:
    """The last validation loss is 2 % or more above the lowest one, after which training loss went on falling."""
    losses = course.validation
    if not course.long_enough or len(losses) < 3 or not np.isfinite(losses).all():
        return None
    low = int(losses.argmin())
    at = course.validation_steps[low]
    before = course.train[course.train_steps <= at][-course.end :]
    rises = losses[-1] >= 1.02 * losses[low] and low < len(losses) - 1
    if not rises or not len(before) or course.part(1) >= before.mean():
        return None
    return f"validation loss rises from {losses[low]:.4g} at step {at:.0f} to {losses[-1]:.4g} while training loss falls"


def spikes(course: Course) -> str | None:
    """A training loss is 30 % above the median of the seven around it, and that by 8 robust standard deviations."""
    if not course.long_enough:
        return None
    middle = _running(course.train, 7, np.median)
    above = np.log(course.train / middle)
    scale = max(1.4826 * float(np.median(np.abs(above - np.median(above)))), 1e-3)
    found = [i for i in range(2, len(above)) if above[i] > max(8 * scale, math.log(1.3))]
    if not found:
        return None
    at = max(found, key=lambda i: above[i])
    return f"training loss is {course.train[at]:.4g} at step {course.train_steps[at]:.0f}, around it {middle[at]:.4g}"


def oscillation(course: Course) -> str | None:
    """Validation loss turns three times or more, each time by 3 %, or training loss has a period (Fisher's g, p < 0.001).

    The period is looked for in what a moving average leaves, which must be 5 % of the loss (standard deviation). Fisher
    1929, "Tests of significance in harmonic analysis": g is the largest share of one frequency, p = sum over k of
    (-1)^(k-1) C(m, k) (1 - k g)^(m-1).
    """
    losses = course.validation
    if len(losses) >= 5 and np.isfinite(losses).all():
        turns = _turns(losses, 0.03)
        if turns >= 3:
            return f"validation loss turns {turns} times between {losses[1:].min():.4g} and {losses[1:].max():.4g}"
    if len(course.train) < 24 or not course.long_enough:
        return None
    rest = course.train - _running(course.train, max(5, len(course.train) // 4 | 1), np.mean)
    if rest.std() < 0.05 * course.train.mean():
        return None
    power = np.abs(np.fft.rfft(rest))[1 : (len(rest) + 1) // 2] ** 2
    largest = int(power.argmax())
    period = len(rest) / (largest + 1)
    if _fisher(float(power[largest] / power.sum()), len(power)) >= 1e-3 or period > len(rest) / 4:
        return None
    return f"training loss swings every {period:.3g} lines by {100 * rest.std() / course.train.mean():.0f} % of its value"


def _running(values: NDArray[np.float64], width: int, of: Callable[..., Any]) -> NDArray[np.float64]:
    """A statistic over the values around each, fewer at the ends."""
    half = width // 2
    return np.array([of(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _turns(values: NDArray[np.float64], share: float) -> int:
    """How often the course changes its direction, where it goes back by a share of the value or more."""
    turns, direction, extreme = 0, 0, values[0]
    for value in values[1:]:
        if direction * (value - extreme) > 0:
            extreme = value
        elif abs(value - extreme) >= share * abs(extreme):
            turns += direction != 0
            direction, extreme = (1 if value > extreme else -1), value
    return turns


def _fisher(g: float, m: int) -> float:
    """Probability that white noise has a frequency with a share of at least g among m."""
    terms = [(-1) ** (k - 1) * math.comb(m, k) * (1 - k * g) ** (m - 1) for k in range(1, min(m, math.floor(1 / g)) + 1)]
    return min(1.0, max(0.0, math.fsum(terms)))


RULES: tuple[tuple[str, Callable[[Course], str | None], str], ...] = (
    ("divergence", divergence, "lower --learning_rate, more --warmup, lower --max_grad_norm"),
    (
        "loss not falling",
        not_falling,
        "higher --learning_rate; by role, the log counts what trains",
    ),
    ("slow convergence", slow_convergence, "higher --learning_rate or more --epochs"),
    ("underfitting", underfitting, "more --epochs, then a higher rank of the method"),
    ("overfitting", overfitting, "fewer --epochs or --early_stopping, lower --learning_rate, more data"),
    ("spikes", spikes, "lower --max_grad_norm, a larger batch by --accumulate, and look at the rows of that step"),
    ("oscillation", oscillation, "lower --learning_rate, or a larger batch by --accumulate"),
)
"""Name, rule, and what to change."""
WORSE = 0.05
"""Rise of the held-out loss, as a share, from which on a run has diverged."""
FORGETS = 0.05
"""Rise of the loss on the retention set, as a share, from which on it is called forgetting."""
FORGETTING = (
    "forgetting", f"The loss on general text rises by {FORGETS:.0%} or more, and its interval is above zero.",
    "lower --learning_rate, fewer --epochs, an adapter of lower rank, or general rows among the data (--mix)",
)  # fmt: skip
"""The sign that the lines do not show."""


def ends_above(course: Course, loss: Comparison) -> bool:
    """Whether a run that went wrong before its first line never came back to where it began."""
    ends = course.part(1) if course.long_enough else loss.tuned
    return loss.better is False and loss.difference >= WORSE * loss.base and ends >= loss.base


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that can be read, none where there is no such file."""
    return read_lines(path)[0] if path.is_file() else []


def stated(rule: Callable[[Course], str | None]) -> str:
    """When a rule gives its sign: the first paragraph of what is written beneath its name."""
    return " ".join((rule.__doc__ or "").split("\n\n")[0].split())


def signs(
    lines: Sequence[Mapping[str, Any]], loss: Comparison | None = None, retention: Comparison | None = None
) -> list[Sign]:
    """What looks wrong in a run.

    Args:
        lines: Those of metrics.jsonl.
        loss: That of base and tuned model on held-out rows.
        retention: The same on general text.
    """
    course = Course(lines)
    out = []
    if loss is not None and not divergence(course) and ends_above(course, loss):
        worse = f"Training ends above the base's held-out loss, and the tuned one is above it by {WORSE:.0%} or more, surely."
        found = f"held-out loss is {loss.base:.4g} for the base and {loss.tuned:.4g} for the tuned model"
        out.append(Sign(RULES[0][0], found, worse, RULES[0][2]))
    for name, rule, change in RULES:
        seen = rule(course)
        if seen:
            out.append(Sign(name, seen, stated(rule), change))
    if retention is not None and retention.better is False and retention.difference >= FORGETS * retention.base:
        found = f"loss on general text rises from {retention.base:.4g} to {retention.tuned:.4g} {retention.interval}"
        out.append(Sign(FORGETTING[0], found, *FORGETTING[1:]))
    return out
