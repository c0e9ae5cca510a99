"""`data convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.parser import command

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Write the rows of files in another format."""
    from lightning_ft_datatools.converting import FORMATS, convert
    from lightning_ft_datatools.output import write_rows
    from lightning_ft_datatools.reading import split_columns

    words, columns = split_columns(argv)
    parser = command(
        "data convert",
        "Rows in another format that can hold them; nothing is written if one row does not fit.",
        "example: lightning-ft data convert rows.csv --to messages --output rows.jsonl",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files, globs or folders")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl file")
    parser.add_argument("--task", metavar="NAME", help="the task (default: by the columns)")
    parser.epilog = f"{parser.epilog}\n--columns.NAME COLUMN gives a column the name that the task reads, as in fit."
    arguments = parser.parse_args(words)
    rows = convert(arguments.files, arguments.to, task=arguments.task, columns=columns)
    write_rows(arguments.output, rows)
    print(f"{arguments.output}: {len(rows):,} rows as {arguments.to}")
    return 0
