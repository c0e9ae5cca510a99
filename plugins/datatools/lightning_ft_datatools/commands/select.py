"""`data select`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.parser import command

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Write the selected rows."""
    from lightning_ft_datatools.output import write_rows
    from lightning_ft_datatools.reading import split_columns
    from lightning_ft_datatools.selection import WAYS, select

    words, columns = split_columns(argv)
    parser = command(
        "data select",
        "Fewer rows: the most different ones, the best ones by a stated score, or as many of each class.",
        "example: lightning-ft data select rows.jsonl --count 1000 --output few.jsonl",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files, globs or folders")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="rows to keep")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl file")
    parser.add_argument("--by", default="diverse", choices=WAYS, help="diverse (default), or quality with its parts as columns")
    parser.add_argument("--balance", metavar="COLUMN", help="as many rows of each value of a column as there are")
    parser.add_argument("--task", metavar="NAME", help="the task (default: by the columns)")
    parser.epilog = f"{parser.epilog}\n--columns.NAME COLUMN gives a column the name that the task reads, as in fit."
    arguments = parser.parse_args(words)
    rows = select(
        arguments.files, arguments.count, by=arguments.by, balance=arguments.balance, task=arguments.task, columns=columns
    )
    write_rows(arguments.output, rows)
    print(f"{arguments.output}: {len(rows):,} rows, chosen by {arguments.by}")
    return 0
