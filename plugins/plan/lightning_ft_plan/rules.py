"""Rules of thumb as data, and what follows from them together with the forecast: a recommendation with its reasons, and advice.

The numbers are orientation from practice, not measurements of ours; where a forecast says otherwise, the forecast counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_ft_plan.machine import show_memory
from lightning_ft_plan.typed import flag, value_word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.method import Method
    from lightning_ft.objective import Objective
    from lightning_ft_plan.forecast import Row

Goal = Literal["one_task", "several_tasks", "domain_shift", "new_task"]
GOALS: tuple[Goal, ...] = get_args(Goal)
Kind = Literal["quantised", "adapter", "full"]
"""Ways to train, from the leanest: an adapter on a quantised base, an adapter, all weights."""
KINDS: tuple[Kind, ...] = get_args(Kind)
WORDS: Mapping[Kind, str] = {"quantised": "QLoRA", "adapter": "LoRA", "full": "full fine-tuning"}

BY_MEMORY: tuple[tuple[float, Kind], ...] = ((12e9, "quantised"), (24 * 2**30 + 1, "adapter"), (float("inf"), "full"))
"""Memory below which a way is usual (models of about seven billion parameters); a card of 24 GB has 24 * 2**30 bytes."""
ROWS_BY_SIZE: tuple[tuple[float, int, int], ...] = ((1e9, 500, 1000), (1e10, 1000, 2000), (float("inf"), 2000, 5000))
"""Parameters below which so many to so many training rows are usual."""
ROWS_BY_KIND: Mapping[Kind, tuple[int, int | None]] = {
    "quantised": (1000, 10_000), "adapter": (1000, 10_000), "full": (10_000, None),
}  # fmt: skip
"""Training rows that a way usually wants: from, to."""
RANK, DROPOUT, EPOCHS = (4, 64), (0.05, 0.1), (2, 5)
ALPHA = (1.0, 4.0)
"""alpha over rank; 2 is usual."""
RATE = 5.0
"""Times that a learning rate may be above or below its method's own."""
LOW_RANK, HIGH_RANK = 8, 64
GOAL_SAYS: Mapping[Goal, tuple[Kind | None, int | None, str]] = {
    "one_task": (None, None, ""),
    "several_tasks": (
        "adapter", None, "several related tasks are served best by one adapter each on a base that they share",
    ),
    "domain_shift": ("adapter", LOW_RANK, "a slight shift of the domain needs a low rank only"),
    "new_task": ("full", HIGH_RANK, "a complete change of the task needs all weights, or an adapter of high rank"),
}  # fmt: skip
"""The way that a goal asks for, the rank of an adapter for it, and why."""


@dataclass(frozen=True)
class Recommendation:
    """What to type, and why."""

    row: str | None
    """The row of the table; None: nothing fits, or nothing that might be recommended was forecast."""
    flags: tuple[str, ...]
    """The method and how the base is stored, as they are typed."""
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"row": self.row, "flags": list(self.flags), "reasons": list(self.reasons)}


def recommend(rows: Mapping[Kind, Row], memory: int, goal: Goal, trained: int, parameters: float) -> Recommendation:
    """The richest usual way that the goal asks for, the data suffice for, and the memory holds.

    Args:
        rows: The rows of the table that stand for the three ways; those that are not to be had are left out.
        memory: Bytes.
        goal: What the user wants to reach.
        trained: Training rows.
        parameters: Numbers of the model.
    """
    usual = next(kind for bound, kind in BY_MEMORY if memory < bound)
    wanted, rank, why = GOAL_SAYS[goal]
    reasons = [f"with {show_memory(memory)} {WORDS[usual]} is usual, for models of about 7 billion parameters"]
    kind = usual
    if wanted is not None:
        reasons.append(why)
        kind = wanted
    least = ROWS_BY_KIND["full"][0]
    if kind == "full" and trained < least:
        kind = "adapter"
        reasons.append(f"full fine-tuning wants {least:,} rows and more, and there are {trained:,}")
    candidates = [k for k in reversed(KINDS[: KINDS.index(kind) + 1]) if k in rows]
    # A way that is richer than the memory's rule of thumb is taken where it was forecast to fit: it costs nothing.
    if wanted is None and kind == "quantised" and "adapter" in rows:
        candidates = ["adapter", *candidates]
    verdicts = {k: rows[k].verdict(memory) for k in candidates}
    for good in ("fits", "tight"):
        for k in candidates:
            if verdicts[k] == good:
                reasons.append(_fitting(rows[k], memory, good))
                reasons += _too_large(rows, [c for c in candidates if KINDS.index(c) > KINDS.index(k)], memory)
                return Recommendation(rows[k].name, _flags(rows[k], k, rank), (*reasons, *enough(trained, parameters, k)))
    if not candidates:
        ways = " or ".join(WORDS[k] for k in reversed(KINDS[: KINDS.index(kind) + 1]))
        reasons.append(f"of {ways} there is no forecast; name a --method that has one, or that `fit` is to measure")
        return Recommendation(None, (), tuple(reasons))
    reasons.append(
        "none of them fits: lower --batch_tokens or --max_length, type --gradient_checkpointing true, or take a smaller model"
    )
    return Recommendation(None, (), tuple(reasons))


def _fitting(row: Row, memory: int, verdict: str) -> str:
    found = "was measured to take" if row.measured else "takes by the forecast"
    close = ", which is tight: --execute measures it" if verdict == "tight" and not row.measured else ""
    return f"{row.name} {found} {show_memory(row.total)} of {show_memory(memory)}{close}"


def _too_large(rows: Mapping[Kind, Row], kinds: Sequence[Kind], memory: int) -> list[str]:
    return [
        f"{rows[k].name} would take {show_memory(rows[k].total)}" for k in kinds if rows[k].verdict(memory) == "does not fit"
    ]


def _flags(row: Row, kind: Kind, rank: int | None) -> tuple[str, ...]:
    options = dict(row.options)
    if kind != "full" and rank is not None:
        options.setdefault("rank", rank)
    stored = {} if row.stored is None else {name: value for name, value in asdict(row.stored).items() if value}
    named = {**{f"method.{name}": value for name, value in options.items()}, **stored}
    return ("--method", row.method, *(word for name, value in named.items() for word in flag(name, value_word(value))))


def enough(trained: int, parameters: float, kind: Kind) -> list[str]:
    """Whether the number of rows is usual for a model of this size and for a way."""
    _, low, high = next(entry for entry in ROWS_BY_SIZE if parameters < entry[0])
    size = f"{parameters / 1e9:.2g} billion parameters" if parameters >= 1e8 else f"{parameters / 1e6:.3g} million parameters"
    few, many = ROWS_BY_KIND[kind]
    span = f"{few:,} to {many:,}" if many else f"{few:,} and more"
    said = [f"{trained:,} training rows: {low:,} to {high:,} are usual for {size}, {span} for {WORDS[kind]}"]
    if trained < min(low, few):
        said[0] += "; these are few, so look at the verdict before you trust the model"
    return said


def advise(
    options: Mapping[str, Any], method: Method, values: Mapping[str, Any], objective: Objective | None = None
) -> list[str]:
    """A line for each given option that is out of its usual range.

    Args:
        options: Those of the method that the user gave.
        method: The method with them.
        values: Everyday options that the user gave.
        objective: What is minimised; None: what is by itself.
    """
    lines = []
    rank, alpha = getattr(method, "rank", None), getattr(method, "alpha", None)
    if "rank" in options and not RANK[0] <= options["rank"] <= RANK[1]:
        lines.append(f"--method.rank {options['rank']}: {RANK[0]} to {RANK[1]} is usual")
    if "alpha" in options and rank and alpha and not ALPHA[0] <= alpha / rank <= ALPHA[1]:
        lines.append(f"--method.alpha {alpha:g}: about 2 x rank is usual, here {2 * rank}")
    if "dropout" in options and not DROPOUT[0] <= options["dropout"] <= DROPOUT[1]:
        lines.append(f"--method.dropout {options['dropout']:g}: {DROPOUT[0]} to {DROPOUT[1]} is usual")
    if (rate := values.get("learning_rate")) is not None:
        from lightning_ft.builtin import SFT
        from lightning_ft.optim import usual_rate

        usual = usual_rate(method, objective or SFT())
        if not usual / RATE <= rate <= usual * RATE:
            span = f"{usual / RATE:.1g} to {usual * RATE:.1g}"
            lines.append(f"--learning_rate {rate:g}: {span} is usual for {method.name}")
    if (epochs := values.get("epochs")) is not None and not EPOCHS[0] <= epochs <= EPOCHS[1]:
        lines.append(f"--epochs {epochs:g}: {EPOCHS[0]} to {EPOCHS[1]} is usual")
    return lines
