"""`score`: measure predictions that exist already, whoever made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.evaluate import add_execution, permit_execution, split_names
from lightning_ft.cli.parser import add_once, command, given_once
from lightning_ft.errors import DataError, UsageError, json_name, json_name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import Example, ScoredRow

MOST_ERRORS = 20


def main(argv: Sequence[str]) -> int:
    """Print a table of metrics."""
    parser = command(
        "score",
        'Measure predictions: a .jsonl file of {"prediction": ..., "reference": ...} or {"prediction", "references": [...]}; '
        "some metrics need no reference.",
        "example: lightning-ft score --predictions predictions.jsonl --metrics NAME,NAME (`plugins list --check` shows them)",
    )
    add_once(parser, "predictions", "FILE", "the predictions")
    parser.add_argument("--metrics", nargs="+", required=True, metavar="NAME", help="metrics that read text")
    parser.add_argument("--by", metavar="KEY", help="values for each group of rows, too")
    add_execution(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    arguments = parser.parse_args(argv)
    name = given_once(arguments, "predictions", "lightning-ft score --predictions FILE --metrics NAME")
    rows = read_predictions(name)
    metrics = text_metrics(split_names(arguments.metrics, "--metrics") or [])
    permit_execution(arguments)

    from lightning_ft.atomic import strict
    from lightning_ft.cli.tables import print_evaluation
    from lightning_ft.evaluation import Evaluation, as_metrics, check_group
    from lightning_ft.scoring import check_rows

    made = as_metrics(metrics)
    check_rows(made, rows, {"text"})
    if arguments.by:
        check_group(arguments.by, [row.example for row in rows])
    found = Evaluation.of(made, rows, by=arguments.by)
    empty = [name for name in dict.fromkeys(metrics) if name not in found.metrics]
    if empty:
        raise DataError(
            f"{name}: expected rows that count for {', '.join(empty)}, got none among {len(rows)}; leave it out, or add what "
            "it needs to the rows."
        )
    if arguments.json:
        groups = {"groups": found.groups} if arguments.by else {}
        print(json.dumps(strict({"rows": len(rows), **found.metrics, **groups})))
    else:
        print(f"{len(rows)} rows of {name}")
        print_evaluation(found, all_groups="--json has all")
    return 0


def text_metrics(names: Sequence[str]) -> list[str]:
    """The registered spelling of metrics that can be computed from text alone.

    Raises:
        UsageError: an unknown metric, or one that needs a model's likelihoods.
    """
    from lightning_ft.registry import registry

    out = []
    for name in names:
        entry = registry().metrics[name]
        if entry.cls.reads != "text":
            raise UsageError(
                f"Expected metrics that read text; got '{entry.name}', which needs a model's likelihoods: type "
                "`lightning-ft evaluate --model RUN --data FILE`."
            )
        out.append(entry.name)
    return out


def read_predictions(name: str) -> list[ScoredRow]:
    """The rows of a predictions file.

    Raises:
        DataError: it cannot be read, or rows are wrong; up to 20 are listed, each with `file:line`.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{name}: expected a .jsonl file of predictions; {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: expected UTF-8 text; got byte {error.object[error.start]:#04x} at {error.start}.") from None
    rows, errors = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line, f"{name}:{number}"))
        except ValueError as error:
            errors.append(f"{name}:{number}: {error}.")
    if errors:
        more = f"\n... and {len(errors) - MOST_ERRORS} more rows." if len(errors) > MOST_ERRORS else ""
        raise DataError("\n".join(errors[:MOST_ERRORS]) + more)
    if not rows:
        raise DataError(f"{name}: expected at least one row of predictions; got none.")
    return rows


def _row(line: str, row: str) -> ScoredRow:
    from lightning_ft.evaluation import EXAMPLES, example_from_dict
    from lightning_ft.types import Conversation, Message, ScoredRow

    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object; {error.msg} at column {error.colno}") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object; got {json_name(values)}")
    prediction = values.get("prediction")
    if not isinstance(prediction, str):
        raise ValueError(f"expected 'prediction' to be text; got {json_name_of(values, 'prediction')}")
    references = _references(values)
    prompt = values.get("prompt")
    turns = [Message("user", prompt)] if isinstance(prompt, str) else []
    meta = {key: value for key, value in values.items() if key not in ("prediction", "reference", "references", "example")}
    written = values.get("example")
    kept = written if isinstance(written, dict) and isinstance(written.get("meta"), dict) else None
    if kept is not None:  # where `evaluate` keeps the columns of the data
        meta = kept["meta"] | meta
    example: Example = Conversation((*turns, Message("assistant", references[0] if references else prediction)), meta=meta)
    if kept is not None and kept.get("type") in EXAMPLES:  # as `evaluate` saw it: the prompt is that as the template wrote it
        example = example_from_dict({**kept, "meta": meta})
    return ScoredRow(
        row=row, example=example, prompt=prompt if turns else None, prediction=prediction, references=tuple(references)
    )


def _references(values: dict[str, Any]) -> list[str]:
    """The accepted answers; none where the row names none, which is for the metrics to refuse."""
    if "reference" in values and "references" in values:
        raise ValueError("expected 'reference' or 'references'; got both")
    key = "references" if "references" in values else "reference"
    if values.get(key) is None and key == "reference":
        return []
    references = [values[key]] if isinstance(values[key], str) else values[key]
    if references == [] and isinstance(values.get("example"), dict):  # `evaluate` writes so that there are none
        return []
    if not isinstance(references, list) or not references or not all(isinstance(r, str) for r in references):
        raise ValueError(f"expected '{key}' to be text or a list of texts; got {json_name_of(values, key)}")
    return references
