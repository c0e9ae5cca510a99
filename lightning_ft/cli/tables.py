"""Tables on the terminal, in plain characters so that they can be piped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.evaluation import Evaluation
    from lightning_ft.types import Measurement


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: frozenset[int] = frozenset()) -> str:
    """Rows under a head, columns aligned.

    Args:
        head: names of the columns.
        rows: cells as text.
        numbers: columns that are aligned on the right.
    """
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def percent_names(names: Sequence[str]) -> frozenset[str]:
    """Which of these metrics are shares that tables show in per cent."""
    from lightning_ft.registry import registry

    metrics = registry().metrics
    return frozenset(name for name in names if name in metrics and metrics[name].cls.percent)


def number(value: float, *, percent: bool = False) -> str:
    """A metric's value: per cent with two decimals, else four decimals."""
    return f"{100 * value:.2f} %" if percent else f"{value:.4f}" if isinstance(value, float) else str(value)


def print_metrics(values: Mapping[str, float]) -> None:
    """Metrics by name, as a table."""
    shares = percent_names(list(values))
    print(table(("metric", "value"), [(k, number(v, percent=k in shares)) for k, v in values.items()], numbers=frozenset({1})))


MOST_GROUPS = 30
"""Groups that a table shows."""


def print_evaluation(evaluation: Evaluation, *, all_groups: str) -> None:
    """Every metric with the spread of its rows where it has one, the groups' values, and how metrics were computed.

    Args:
        evaluation: What was measured.
        all_groups: Where those groups are that are too many for a table.
    """
    shares = percent_names(list(evaluation.metrics))
    rows = []
    for name, value in evaluation.metrics.items():
        spread = evaluation.spreads.get(name)
        further = (spread.std, spread.low, spread.high) if spread else ()
        cells = [number(x, percent=name in shares) for x in (value, *further)] + [""] * (3 - len(further))
        rows.append((name, *cells, str(evaluation.counts[name])))
    print(table(("metric", "value", "std", "min", "max", "rows"), rows, numbers=frozenset(range(1, 6))))
    if evaluation.groups:
        groups = [
            (
                group, str(evaluation.group_rows[group]),
                *(number(own[name], percent=name in shares) if name in own else "" for name in evaluation.metrics),
            )
            for group, own in list(evaluation.groups.items())[:MOST_GROUPS]
        ]  # fmt: skip
        numbers = frozenset(range(1, len(evaluation.metrics) + 2))
        print("\n" + table(("group", "rows", *evaluation.metrics), groups, numbers=numbers))
        if (more := len(evaluation.groups) - MOST_GROUPS) > 0:
            print(f"... and {more:,} more groups; {all_groups}")
    for name, signature in evaluation.signatures.items():
        print(f"{name}: {signature}")


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """Each number of a benchmark with its standard error, and which way is better."""
    arrows = {True: "up", False: "down", None: ""}
    rows = [
        (
            one.task, f"{one.metric} ({one.filter})" if one.filter else one.metric, number(one.value),
            "" if one.error is None else number(one.error), arrows[one.higher_is_better], str(one.rows),
        )
        for one in measurements
    ]  # fmt: skip
    print(table(("task", "metric", "value", "std error", "better", "rows"), rows, numbers=frozenset({2, 3, 5})))
