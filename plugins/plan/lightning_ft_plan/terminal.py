"""A plan as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.tables import table
from lightning_ft_plan.forecast import RUNTIME
from lightning_ft_plan.hollow import PARTS
from lightning_ft_plan.machine import show_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft_plan.forecast import Row
    from lightning_ft_plan.planning import Plan

HEAD = ("method", "trains", *PARTS, RUNTIME, "memory", "step", "run", "verdict")
NUMBERS = frozenset(range(1, len(HEAD) - 1))


def lines(plan: Plan) -> Iterator[str]:
    """The table, what it rests on, and what is recommended, last, where the eye is when a command ends."""
    data = plan.data
    rows = "packed rows" if data["packed"] else "padded batches"
    yield (
        f"{plan.model}: {plan.parameters:,} parameters; {data['rows']:,} training rows of {data['tokens']:,} tokens, "
        f"{data['steps']:,} steps, {rows} of up to {data['largest_micro_batch']:,} tokens; "
        f"{show_memory(plan.target.memory)} of memory ({plan.target.device})"
    )
    yield ""
    shown = sorted((row for row in plan.rows if not row.reason), key=lambda row: row.total)
    yield table(HEAD, [_cells(row, plan) for row in shown], numbers=NUMBERS)
    yield ""
    for row in plan.rows:
        if row.reason:
            yield f"{row.name}: {row.reason}"
        elif row.note:
            yield f"{row.name}: {row.note}"
    if any(row.measured for row in plan.rows):
        yield "Rows with * were measured by the preflight, in parts as the forecast has them."
    if plan.speed:
        yield f"Time: of training alone, without validations and saves; {'; '.join(plan.speed)}."
    else:
        yield "Time: not told, as no such device is here to be measured."
    for line in plan.advice:
        yield f"Advice: {line}."
    yield ""
    yield "Why: " + "; ".join(plan.recommendation.reasons) + "."
    yield _recommended(plan)


def _recommended(plan: Plan) -> str:
    if plan.command is None:
        return "Recommended: nothing, as it is."
    return f"Recommended: {plan.recommendation.row}; type `{plan.command}`."


def _cells(row: Row, plan: Plan) -> tuple[str, ...]:
    sizes = [show_memory(row.parts[part]) for part in (*PARTS, RUNTIME)]
    step = "-" if row.step_seconds is None else show_time(row.step_seconds)
    run = "-" if row.total_seconds is None else show_time(row.total_seconds)
    star = " *" if row.measured else ""
    return (
        f"{row.name}{star}", f"{row.trainable:,}", *sizes, show_memory(row.total), step, run,
        row.verdict(plan.target.memory) or "",
    )  # fmt: skip


def show_time(seconds: float) -> str:
    """Three digits, then minutes and seconds, then hours and minutes."""
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
