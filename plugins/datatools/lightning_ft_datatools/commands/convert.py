"""`data convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft_datatools.commands.parser import parsed, tool

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Write the rows of files in another format."""
    from lightning_ft_datatools.converting import FORMATS, convert
    from lightning_ft_datatools.output import write_rows
    from lightning_ft_datatools.targets import check_rows

    parser = tool(
        "convert",
        "Rows in another format that can hold them; nothing is written if one row does not fit.",
        "rows.csv --to messages --output rows.jsonl",
    )
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl file")
    arguments = parsed(parser, argv)
    check_rows(arguments.output, arguments.files)
    rows = convert(arguments.files, arguments.to, task=arguments.task, columns=arguments.columns)
    write_rows(arguments.output, rows)
    print(f"{arguments.output}: {len(rows):,} rows as {arguments.to}")
    return 0
