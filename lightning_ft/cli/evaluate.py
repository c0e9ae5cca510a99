"""`evaluate`: measure a model on held-out data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.parser import add_model, choice_of, command, given_once
from lightning_ft.cli.sampling import add_sampling, given_sampling
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        "--metrics", nargs="+", metavar="NAME", help="default: loss, perplexity, token accuracy and those of the task"
    )
    parser.add_argument(
        "--task", default="auto", help="what a row is, a name or {name: NAME, option: value}; auto: by its columns"
    )
    parser.add_argument("--max_rows", type=int, metavar="N", help="measure a sample of N rows, drawn by --seed")
    parser.add_argument("--output", metavar="FOLDER", help="the folder to write; default: <run>/eval_<n>")
    add_sampling(parser)
    arguments = parser.parse_args(argv)
    usage = "lightning-ft evaluate --model RUN --data FILE"
    model = given_once(arguments, "model", usage)
    if not arguments.data:
        raise UsageError(f"Expected --data, got nothing; type `{usage}`.")
    metrics = split_names(arguments.metrics)

    from lightning_ft.api import evaluate
    from lightning_ft.cli.tables import print_metrics
    from lightning_ft.registry import registry

    task = choice_of(arguments.task, "--task")
    for name in metrics or ():
        registry().metrics[name]
    result = evaluate(
        model, arguments.data, metrics=metrics, task=task, output=arguments.output, max_rows=arguments.max_rows,
        **given_sampling(arguments),
    )  # fmt: skip
    print_metrics({k: v for k, v in result.metrics.items() if isinstance(v, (int, float))})
    if result.folder is not None:
        print(f"Details: {result.folder}")
    return 0


def split_names(words: Sequence[str] | None) -> list[str] | None:
    """`a,b c` as [a, b, c]."""
    if words is None:
        return None
    return [name for word in words for name in word.split(",") if name]
