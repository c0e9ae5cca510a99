"""Models on the same rows, each against the first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.bootstrap import MIN_ROWS, paired_bootstrap
from lightning_ft.errors import UsageError
from lightning_ft.evaluation import Evaluation, as_metrics, readable, statistics
from lightning_ft.registry import registry
from lightning_ft_compare import breakdown, gate
from lightning_ft_compare.evaluations import Request, Side, check_models, check_read, claimed, gather, prompt_of
from lightning_ft_compare.results import BY, LEVEL, SAMPLES, Difference, Group, Model, Pair, Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_ft.metric import Metric
    from lightning_ft_compare.judging import Judge

READ = {
    "text": "answers",
    "tokens": "likelihoods",
    "candidates": "likelihoods of the answers that are allowed",
    "pair": "likelihoods of a better and of a worse answer",
}
"""What metrics read, in words."""


def compare(
    models: Sequence[str], data: str | Path | Sequence[str | Path] = (), *, metrics: Sequence[str] | None = None,
    task: Any = "auto", output: str | Path | None = None, by: str | None = None, samples: int = SAMPLES, level: float = LEVEL,
    fail_if_worse: Sequence[str] = (), judge: Judge | None = None, max_rows: int | None = None, seed: int = 0, **options: Any,
) -> Report:  # fmt: skip
    """Compare models on the same rows and write a folder: evaluations, comparison.json, report.md, report.html.

    Args:
        models: The baseline first; each is anything that `lightning_ft.evaluate` takes, or a folder that it wrote.
        data: Files, globs or folders; none where every model is the folder of an evaluation.
        metrics: Names; None: those that all evaluations have, of new ones loss, perplexity, token accuracy and the task's, of
            pairs the latter alone.
        task: What a row is; auto: as in the first run among the models, else by its columns.
        output: Folder to write; None: the first free runs/compare_<n>.
        by: Column of the breakdown; None: `task`, where there is one.
        samples: Draws of the bootstrap.
        level: Coverage of the intervals.
        fail_if_worse: Limits as `METRIC[:MARGIN]` (`gate.RULE`); what exceeds them is in `Report.refusals`.
        judge: A model that judges the answers.
        max_rows: Rows of a seeded sample; None: all.
        seed: Decides sample, answers and draws.
        **options: Further options of `lightning_ft.evaluate`.

    Raises:
        UsageError: wrong options or data, or evaluations of different rows. EndpointError: the judge does not answer.
    """
    files = [str(data)] if isinstance(data, (str, Path)) else [str(name) for name in data]
    names = [str(name) for name in models]
    check_models(names, files)
    wanted = None if metrics is None else [registry().metrics[name].name for name in metrics]
    check_read(names, {"data": files, "task": None if task == "auto" else task, "max_rows": max_rows, **options})
    limits = gate.limits_of(fail_if_worse)
    _check_numbers(samples, level)
    if wanted is not None:
        wanted = list(dict.fromkeys([*wanted, *(limit.metric for limit in limits)]))

    def seen(side: Side) -> None:
        _complete(side.evaluation, [*(wanted or ()), *(limit.metric for limit in limits)], side.letter)
        if by is not None and not breakdown.by_column(side.evaluation, by):
            raise UsageError(f"Expected --by to be a column that rows of '{side.name}' have; got '{by}'.")

    with claimed(output, "compare") as folder:
        check_free(folder)
        if judge is not None:
            judge.check()
        request = Request(files, wanted, task, max_rows, {**options, "seed": seed, "by": by})
        sides = gather(names, request, folder, seen)
        folder.mkdir(parents=True, exist_ok=True)
        report = _report(sides, wanted, by or BY, samples, level, seed, limits)
        if judge is not None:
            report = judge.judged(report, sides, folder)
        report = dataclasses.replace(report, folder=folder)

        from lightning_ft_compare.writing import write

        write(report)
    if judge is not None:
        judge.check_failures(report)
    return report


def _check_numbers(samples: int, level: float) -> None:
    if samples < 100:
        raise UsageError(f"Expected --samples to be at least 100, so that an interval has ends; got {samples}.")
    if not 0.5 <= level < 1:
        raise UsageError(f"Expected --level to be from 0.5 to below 1; got {level:g}, as in 0.95.")


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        UsageError: it does, or cannot be written.
    """
    from lightning_ft.run.folder import check_writable

    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"Expected --output to be a new folder, got '{folder}', which holds something; name another.")


def _complete(evaluation: Evaluation, names: Sequence[str], letter: str) -> None:
    """Add metrics that an evaluation does not have yet from its rows, which hold what is needed.

    Raises:
        UsageError: no row has it.
    """
    lacking = [name for name in dict.fromkeys(names) if name not in evaluation.tables]
    if not lacking:
        return
    further = Evaluation.of(lacking, evaluation.rows)
    for name in lacking:
        if name not in further.tables:
            metric = registry().metrics[name].cls()
            if any(readable(metric, row) for row in evaluation.rows):
                raise UsageError(
                    f"Expected rows that count for metric '{name}' in the evaluation of {letter}, got none among "
                    f"{len(evaluation.rows)}; leave it out, or add what it needs to the rows."
                )
            raise UsageError(
                f"Expected {READ[metric.reads]} for metric '{name}' in the evaluation of {letter}, got "
                "none; name it with --metrics and the model itself, so that it is evaluated again."
            )
    evaluation.tables |= further.tables
    evaluation.metrics |= further.metrics
    evaluation.signatures |= further.signatures


def _report(
    sides: Sequence[Side], wanted: Sequence[str] | None, by: str, samples: int, level: float, seed: int,
    limits: Sequence[gate.Limit],
) -> Report:  # fmt: skip
    base, *others = sides
    notes = []
    tables = dict.fromkeys(name for side in sides for name in side.evaluation.tables)
    names = list(wanted) if wanted is not None else [name for name in tables if name in registry().metrics]
    names = list(dict.fromkeys([*names, *(limit.metric for limit in limits)]))
    left_out = [name for name in names if not all(name in side.evaluation.tables for side in sides)]
    if left_out:
        notes.append(f"Left out, as not every evaluation has them: {', '.join(left_out)}.")
    metrics = as_metrics([name for name in names if name not in left_out])
    rows = base.evaluation.rows
    for name in (name for name in names if name not in left_out):
        signed = {side.evaluation.signatures.get(name, "(no signature)") for side in sides}
        if len(signed) > 1:
            notes.append(f"{name} was not computed in one way: {' and '.join(sorted(signed))}.")
    few = [metric.name for metric in metrics if int(base.evaluation.tables[metric.name].any(1).sum()) < MIN_ROWS]
    if len(rows) < MIN_ROWS:
        notes.append(f"Fewer than {MIN_ROWS} rows never decide.")
    elif few:
        notes.append(f"Fewer than {MIN_ROWS} rows never decide, and no more count for {', '.join(few)}.")
    notes += asked_differently([side.evaluation for side in sides])
    if any([r.tokens for r in side.evaluation.rows] != [r.tokens for r in rows] for side in others):
        notes.append(
            "The models read the same rows as different tokens, by their tokenizers, templates or limits of length: loss, "
            "perplexity and token accuracy are per token and not comparable; compare bits_per_byte."
        )
    if (values := len(base.evaluation.places(by))) > breakdown.MOST_GROUPS:
        notes.append(f"Of {values:,} values of '{by}' the {breakdown.MOST_GROUPS} most frequent are shown.")

    def differences(other: Side, members: Sequence[int] | None = None) -> tuple[Difference, ...]:
        out = []
        for metric in metrics:
            a, b = tables_of(metric, base.evaluation, other.evaluation)
            if members is not None:
                a, b = a[list(members)], b[list(members)]
            found = paired_bootstrap(metric, a, b, samples=samples, seed=seed, level=level)
            out.append(Difference(found))
        return tuple(out)

    def groups(other: Side, parts: dict[str, list[int]]) -> tuple[Group, ...]:
        return tuple(Group(name, len(members), differences(other, members)) for name, members in parts.items())

    columns, lengths = breakdown.by_column(base.evaluation, by), breakdown.by_length(rows)
    pairs = tuple(
        _pair(base, side, metrics, differences(side), groups(side, columns), groups(side, lengths)) for side in others
    )
    counts: dict[int, int] = {}
    for row in rows:
        size = len(prompt_of(row.example))
        counts[size] = counts.get(size, 0) + 1
    confusions = tuple(found for side in sides if (found := breakdown.confusion(side)) is not None)
    return Report(
        tuple(_model(side) for side in sides), len(rows), pairs, confusions, counts, by, level, samples, tuple(notes),
        gate.refusals(limits, pairs),
    )  # fmt: skip


def asked_differently(evaluations: Sequence[Evaluation]) -> list[str]:
    """A sentence for each setting of sampling in which evaluations that existed differ: a difference may come from it."""
    found = [own if isinstance(own := e.details.get("sampling"), dict) else {} for e in evaluations]
    names = list(dict.fromkeys(name for own in found for name in own))
    return [
        f"The answers were not sampled alike: {name} is {' and '.join(dict.fromkeys(str(own.get(name)) for own in found))}."
        for name in names
        if any(own.get(name) != found[0].get(name) for own in found)
    ]


def tables_of(metric: Metric, base: Evaluation, other: Evaluation) -> tuple[Tensor, Tensor]:
    """Statistics of both; where they differ in width, as classes were read off the answers, those of a common preparation."""
    a, b = base.tables[metric.name], other.tables[metric.name]
    if a.shape == b.shape:
        return a, b
    both = statistics(metric, [*base.rows, *other.rows])
    assert both is not None
    return both[: len(base.rows)], both[len(base.rows) :]


def _pair(
    base: Side, other: Side, metrics: Sequence[Metric], differences: tuple[Difference, ...], by_group: tuple[Group, ...],
    by_length: tuple[Group, ...],
) -> Pair:  # fmt: skip
    ours, theirs = base.evaluation, other.evaluation
    judging = [metric for metric in metrics if metric.per_row and metric.higher_is_better is not None]
    scores = {metric.name: breakdown.row_scores(metric, ours, theirs) for metric in judging}
    likelihoods = breakdown.likelihoods(ours, theirs)
    found = [breakdown.wins(name, values) for name, values in scores.items()]
    if any(pair is not None for pair in likelihoods):
        found.append(breakdown.wins(breakdown.LIKELIHOOD, likelihoods))
    moved = {one.of for one in found if one.win or one.loss}
    text = [metric for metric in metrics if metric.name in moved and metric.reads != "tokens"]
    ranked_by = text[0].name if text else breakdown.LIKELIHOOD
    turned = bool(text) and not text[0].higher_is_better
    values = scores.get(ranked_by, likelihoods)
    better, worse = (breakdown.changes(ours, theirs, values, likelihoods, sign=sign, turned=turned) for sign in (1, -1))
    return Pair(other.letter, differences, tuple(found), by_group, by_length, ranked_by, better, worse)


def _model(side: Side) -> Model:
    noted = side.evaluation.details.get("cost")
    cost = {
        key: float(value)
        for key, value in (noted.items() if isinstance(noted, dict) else ())
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    name = str(side.evaluation.details.get("model") or side.name)
    return Model(side.letter, name, side.folder, dict(side.evaluation.metrics), cost, side.run)
