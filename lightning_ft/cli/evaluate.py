"""`evaluate`: measure a model on held-out data."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING

from lightning_ft.cli.early import look
from lightning_ft.cli.parser import add_model, choice_of, command, given_once
from lightning_ft.cli.sampling import NAMES, add_sampling, given_sampling
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from lightning_ft.cli.parser import CommandParser

ALLOW_CODE = "LIGHTNING_FT_ALLOW_CODE_EXECUTION"
"""Set to 1, it is the user's word that metrics may run the code of answers."""
LOSSES = ("on_error", "max_lost")
"""Options of `add_losses`."""
HARNESS_ONLY = ("num_fewshot", "limit", "apply_chat_template")
DATA_ONLY = (
    "data", "metrics", "task", "max_rows", "by", "template", "devices", "allow_code_execution", *LOSSES, *NAMES,
)  # fmt: skip
"""Flags that tasks with prompts and metrics of their own do not read."""


def main(argv: Sequence[str]) -> int:
    """Print a table of metrics and write the details."""
    parser = command(
        "evaluate",
        "Measure a model on held-out data: likelihoods, and generated answers where a metric reads them.",
        "example: lightning-ft evaluate runs/support_1 --data test.jsonl --metrics loss,token_accuracy",
    )
    add_model(parser)
    parser.add_argument("--data", nargs="+", metavar="FILE", help="files, globs or folders; every row is measured")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="default: loss, perplexity, token accuracy and those of the task; of pairs the latter alone",
    )
    parser.add_argument(
        "--task", help="what a row is, a name or {name: NAME, option: value}; auto: as in the model's run, else by its columns"
    )
    parser.add_argument("--max_rows", type=int, metavar="N", help="measure a sample of N rows, drawn by --seed")
    parser.add_argument(
        "--by", metavar="COLUMN", help="values of each group, too, or by `prefix` as in `translate: ...`; default: task, if any"
    )
    parser.add_argument("--template", metavar="NAME", help="chat, alpaca, tags or a Jinja file; default: the model's own")
    parser.add_argument("--max_length", type=int, metavar="N", help="longest row in tokens; default: the model's, at most 2048")
    add_losses(parser)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of the weights; default: as they are stored"
    )
    parser.add_argument("--devices", metavar="N", help="processes that share the rows, or GPUs as 0,1; default: 1")
    parser.add_argument("--output", metavar="FOLDER", help="the folder to write; default: <run>/eval_<n>")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    add_execution(parser)
    add_harness(parser)
    add_sampling(parser)
    arguments = parser.parse_args(argv)
    if arguments.harness is not None:
        return run_tasks(arguments)
    refuse(arguments, HARNESS_ONLY, "only with --harness")
    usage = "lightning-ft evaluate --model RUN --data FILE"
    model = given_once(arguments, "model", usage)
    if not arguments.data:
        raise UsageError(f"Expected --data, got nothing; type `{usage}`.")
    metrics = split_names(arguments.metrics, "--metrics")
    look(model, arguments.data)

    from lightning_ft.api import evaluate
    from lightning_ft.atomic import strict
    from lightning_ft.cli.tables import print_evaluation
    from lightning_ft.evaluation import RESULTS
    from lightning_ft.registry import registry

    task = choice_of(arguments.task or "auto", "--task")
    for name in metrics or ():
        registry().metrics[name]
    permit_execution(arguments)
    further = {name: getattr(arguments, name) for name in ("by", "template", "max_length", "devices", "precision", *LOSSES)}
    result = evaluate(
        model, arguments.data, metrics=metrics, task=task, output=arguments.output, max_rows=arguments.max_rows,
        **{name: value for name, value in further.items() if value is not None}, **given_sampling(arguments),
    )  # fmt: skip
    if result.folder is None:  # another process prints
        return 0
    if arguments.json:
        groups = {"groups": result.groups} if result.groups else {}
        found = {"folder": str(result.folder), "rows": len(result.rows), "metrics": result.metrics, **groups}
        print(json.dumps(strict(found)))
        return 0
    print_evaluation(result, all_groups=f"{result.folder / RESULTS} has all")
    if left_out := result.details["left_out"]:
        print(f"Left out, as no row counts for them: {', '.join(left_out)}.")
    print(f"Details: {result.folder}")
    return 0


def add_losses(parser: CommandParser) -> None:
    """What may be lost of the data, which the errors about it name."""
    parser.add_argument("--on_error", choices=("fail", "skip"), help="rows that cannot be read (default: fail)")
    parser.add_argument("--max_lost", type=float, metavar="S", help="share of rows that may be cut (default: 0.05)")


def add_harness(parser: CommandParser) -> None:
    """The flags of tasks that bring their own prompts and metrics."""
    group = parser.add_argument_group("tasks of a benchmark, instead of --data (run by a plugin)")
    group.add_argument("--harness", nargs="+", metavar="TASK", help="names, files or folders of tasks")
    group.add_argument("--num_fewshot", type=int, metavar="N", help="solved examples in each prompt; default: as the task says")
    group.add_argument("--limit", type=float, metavar="N", help="first N documents of each task; below 1 a share of them")
    group.add_argument("--apply_chat_template", action="store_true", help="ask in turns, by the tokenizer's own template")


def run_tasks(arguments: argparse.Namespace) -> int:
    """`evaluate --harness`: print a table of numbers with their standard errors, and write the details."""
    refuse(arguments, DATA_ONLY, "without --harness")
    model = given_once(arguments, "model", "lightning-ft evaluate --model RUN --harness TASK")
    look(model)

    from lightning_ft.api import evaluate_tasks
    from lightning_ft.atomic import strict
    from lightning_ft.cli.tables import print_measurements

    options = {name: getattr(arguments, name) for name in ("num_fewshot", "limit", "max_length", "precision", "output")}
    found, folder = evaluate_tasks(
        model, split_names(arguments.harness, "--harness", "one task") or [], apply_chat_template=arguments.apply_chat_template,
        **{name: value for name, value in options.items() if value is not None},
    )  # fmt: skip
    if arguments.json:
        measured = [dataclasses.asdict(one) for one in found.measurements]
        print(json.dumps(strict({"folder": str(folder), "measurements": measured})))
        return 0
    print_measurements(found.measurements)
    print(f"Details: {folder}")
    return 0


def refuse(arguments: argparse.Namespace, names: Sequence[str], where: str) -> None:
    """Raise UsageError for a flag that would not be read."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value is not False:
            raise UsageError(
                f"Expected --{name.replace('allow_code_execution', 'allow-code-execution')} {where}; leave it out."
            )


def add_execution(parser: CommandParser) -> None:
    """The flag without which no metric runs code that a model wrote."""
    parser.add_argument(
        "--allow_code_execution",
        action="store_true",
        help="let metrics run the code of answers, in a sandbox; read what it can do",
    )


def permit_execution(arguments: argparse.Namespace) -> None:
    """Pass the permission on to metrics, in this process and those it starts."""
    if arguments.allow_code_execution:
        os.environ[ALLOW_CODE] = "1"


def split_names(words: Sequence[str] | None, option: str, one: str = "one metric") -> list[str] | None:
    """`a,b c` of `--option` as [a, b, c]; UsageError where words name nothing."""
    if words is None:
        return None
    names = [name for word in words for name in word.split(",") if name]
    if words and not names:
        raise UsageError(f"Expected {option} to name at least {one}; got {' '.join(words)!r}.")
    return names
