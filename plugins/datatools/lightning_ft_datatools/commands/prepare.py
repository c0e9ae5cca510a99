"""`data prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.parser import command
from lightning_ft.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Prepare and say what came of it."""
    from lightning_ft_datatools.commands.split import shares_of
    from lightning_ft_datatools.preparing import prepare
    from lightning_ft_datatools.reading import split_columns

    words, columns = split_columns(argv)
    parser = command(
        "data prepare",
        "From raw files to train, validation and test: read, check, clean, split, shuffle and write.",
        "example: lightning-ft data prepare raw.csv --output ready --split 0.8,0.1,0.1",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files, globs or folders")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the parts, the report and the quarantine go")
    parser.add_argument("--split", default="0.8,0.2", metavar="SHARES", help="of train, validation, test (default: 0.8,0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of split and order (default: 0)")
    parser.add_argument("--stratify", metavar="COLUMN", help="every part gets its share of each value ('class': the task's)")
    parser.add_argument("--group", action="append", default=[], metavar="COLUMN", help="rows with one value stay together")
    parser.add_argument("--against", action="append", default=[], metavar="FILE", help="a benchmark that must not be there")
    parser.add_argument("--lower", action="store_true", help="all texts in lower case")
    parser.add_argument("--task", metavar="NAME", help="the task (default: by the columns)")
    parser.add_argument("--model", default="embedded", metavar="MODEL", help="whose tokenizer (default: embedded)")
    parser.epilog = f"{parser.epilog}\n--columns.NAME COLUMN gives a column the name that the task reads, as in fit."
    arguments = parser.parse_args(words)
    made = prepare(
        arguments.files, arguments.output, shares=shares_of(arguments.split), seed=arguments.seed, stratify=arguments.stratify,
        group=arguments.group, task=arguments.task, model=arguments.model, against=arguments.against, lower=arguments.lower,
        columns=columns,
    )  # fmt: skip
    cells = [(name, f"{count:,}", str(made.folder / f"{name}.jsonl")) for name, count in made.rows.items()]
    cells.append(("quarantine", f"{made.removed:,}", str(made.folder / "data.quarantine.jsonl")))
    print(table(("part", "rows", "file"), cells, numbers=frozenset({1})))
    print(f"\n{made.report.rows_read:,} rows read, {made.changed:,} changed; proof: {made.proof}")
    print(f"report: {made.folder / 'report.html'}")
    return 0
