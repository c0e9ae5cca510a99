"""`data select`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft_datatools.commands.parser import parsed, tool

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Write the selected rows."""
    from lightning_ft_datatools.output import write_rows
    from lightning_ft_datatools.selection import WAYS, select
    from lightning_ft_datatools.targets import check_rows

    parser = tool(
        "select",
        "Fewer rows: the most different ones, the best ones by a stated score, or as many of each class.",
        "rows.jsonl --count 1000 --output few.jsonl",
    )
    parser.add_argument("--count", type=int, required=True, metavar="N", help="rows to keep")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl file")
    parser.add_argument("--by", default="diverse", choices=WAYS, help="diverse (default), or quality, with its parts")
    parser.add_argument("--balance", metavar="COLUMN", help="as many rows of each value of a column as there are")
    arguments = parsed(parser, argv)
    check_rows(arguments.output, arguments.files)
    rows = select(
        arguments.files,
        arguments.count,
        by=arguments.by,
        balance=arguments.balance,
        task=arguments.task,
        columns=arguments.columns,
    )
    write_rows(arguments.output, rows)
    print(f"{arguments.output}: {len(rows):,} rows, chosen by {arguments.by}")
    return 0
