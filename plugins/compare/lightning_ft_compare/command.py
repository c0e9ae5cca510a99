"""`lightning-ft compare`: models on the same rows, each against the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.cli.evaluate import LOSSES, add_execution, add_losses, permit_execution, split_names
from lightning_ft.cli.parser import STDOUT, CommandParser, add_json, check_json, choice_of, command
from lightning_ft.cli.sampling import add_sampling, given_sampling
from lightning_ft.errors import CheckFailedError, UsageError
from lightning_ft_compare.gate import RULE
from lightning_ft_compare.judge import CRITERIA, FAILURES
from lightning_ft_compare.results import LEVEL, SAMPLES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from lightning_ft_compare.judging import Judge
    from lightning_ft_compare.results import Report

PURPOSE = """Models on the same rows, each against the first one: paired bootstrap intervals for every metric, wins and losses,
breakdowns, and answers side by side, as a folder with comparison.json, report.md and report.html."""
EXAMPLE = """example: lightning-ft compare --models embedded runs/support_1 --data test.jsonl --fail_if_worse loss:0.05"""


def parser() -> CommandParser:
    """The command's flags."""
    made = command("compare", PURPOSE, EXAMPLE)
    add = made.add_argument
    add(
        "--models", nargs="+", default=[], metavar="MODEL",
        help="the baseline first; run folders, adapters, model folders, hub ids, embedded, or folders that `evaluate` wrote",
    )  # fmt: skip
    add("--data", nargs="+", default=[], metavar="FILE", help="files, globs or folders; not needed for evaluations that exist")
    said = "default: loss, perplexity, token accuracy and those of the task; of pairs the latter alone"
    add("--metrics", nargs="+", metavar="NAME", help=said)
    said = (
        "what a row is, a name or {name: NAME, option: value}; auto: as in the first run among the models, else by its columns"
    )
    add("--task", default="auto", help=said)
    add("--max_rows", type=int, metavar="N", help="measure a sample of N rows, drawn by --seed")
    add("--template", metavar="NAME", help="chat, alpaca, tags or a Jinja file; default: each model's own")
    add("--max_length", type=int, metavar="N", help="longest row in tokens; default: each model's, at most 2048")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of the weights; default: as they are stored")
    add_losses(made)
    add("--output", metavar="FOLDER", help="the new folder to write; default: runs/compare_<n>")
    add("--by", metavar="COLUMN", help="break the differences down by this column; default: task, where rows have it")
    add("--samples", type=int, default=SAMPLES, metavar="N", help=f"draws of the bootstrap (default: {SAMPLES})")
    add("--level", type=float, default=LEVEL, metavar="P", help=f"coverage of each interval (default: {LEVEL})")
    add("--fail_if_worse", "--fail-if-worse", nargs="+", default=[], metavar="METRIC", help=RULE.replace("%", "%%"))
    add_json(made, "the comparison")
    group = made.add_argument_group("a model as judge of the answers, each pair in both orders")
    add = group.add_argument
    add("--judge", metavar="URL", help="OpenAI-compatible chat completions; the key is read from $OPENAI_API_KEY")
    add("--judge_model", metavar="NAME", help="the endpoint's model")
    add("--criteria", nargs="+", metavar="NAME", help=f"of {', '.join(CRITERIA)} (default: all), or texts of several words")
    add("--judge_failures", type=float, metavar="S", help=f"share of rows that may fail; more: exit 1 (default: {FAILURES})")
    add("--judge_timeout", type=float, metavar="SECONDS", help="without a byte, before a request is tried again (default: 120)")
    add_execution(made)
    add_sampling(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Compare, print, and say no where a limit is exceeded."""
    arguments = parser().parse_args(argv)
    check_json(arguments.json)
    permit_execution(arguments)
    metrics, limits = split_names(arguments.metrics, "--metrics"), split_names(arguments.fail_if_worse, "--fail-if-worse")
    further = {name: getattr(arguments, name) for name in ("template", "max_length", "precision", *LOSSES)}

    from lightning_ft_compare.comparing import compare

    report = compare(
        arguments.models, arguments.data, metrics=metrics, task=choice_of(arguments.task, "--task"),
        output=arguments.output, by=arguments.by, samples=arguments.samples, level=arguments.level,
        fail_if_worse=limits or (), judge=judge_of(arguments), max_rows=arguments.max_rows,
        **{name: value for name, value in further.items() if value is not None}, **given_sampling(arguments),
    )  # fmt: skip
    text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
    if arguments.json == STDOUT:
        print(text)
    else:
        show(report)
        if arguments.json:
            from lightning_ft.atomic import write_text

            write_text(Path(arguments.json), text + "\n")
    if report.refusals:
        raise CheckFailedError(" ".join(report.refusals))
    return 0


def judge_of(arguments: argparse.Namespace) -> Judge | None:
    """The judge that was asked for.

    Raises:
        UsageError: its options without it, or wrong ones.
    """
    from lightning_ft_compare.judging import Judge

    further = {
        "model": arguments.judge_model, "criteria": arguments.criteria, "most_failures": arguments.judge_failures,
        "timeout": arguments.judge_timeout,
    }  # fmt: skip
    given = {name: value for name, value in further.items() if value is not None}
    if arguments.judge is None:
        if given:
            raise UsageError(f"Expected --judge URL together with the judge's {', '.join(given)}; got none.")
        return None
    return Judge(arguments.judge, **{"model": "", **given})


def show(report: Report) -> None:
    """Print what matters most."""
    from lightning_ft.cli.tables import table
    from lightning_ft_compare import tables
    from lightning_ft_compare.writing import PAGE

    def printed(found: tables.Table) -> None:
        print(table(found.head, found.rows, numbers=found.numbers) + "\n")

    for model in report.models:
        print(f"{model.letter}: {model.name}")
    print()
    for pair in report.pairs:
        printed(tables.differences(report, pair))
    printed(tables.wins(report))
    for pair in report.pairs:
        if pair.judged:
            printed(tables.judged(report, pair))
    if cost := tables.cost(report):
        printed(cost)
    for note in report.notes:
        print(f"Note: {note}")
    print(report.sentence)
    assert report.folder is not None
    print(f"Report: {report.folder / PAGE}")
