"""`data split`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.cli.parser import command
from lightning_ft.data.split import GROUP_COLUMNS
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Split files and write a file for each part."""
    from lightning_ft_datatools.reading import split_columns
    from lightning_ft_datatools.splitting import split

    words, columns = split_columns(argv)
    parser = command(
        "data split",
        "Training, validation and test files; rows with the same or nearly the same prompt stay together.",
        "example: lightning-ft data split rows.jsonl --output parts --split 0.8,0.1,0.1",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files, globs or folders")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where train.jsonl and the others go")
    parser.add_argument("--split", default="0.8,0.2", metavar="SHARES", help="of train, validation, test (default: 0.8,0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another split (default: 0)")
    parser.add_argument("--stratify", metavar="COLUMN", help="every part gets its share of each value ('class': the task's)")
    parser.add_argument("--group", action="append", default=[], metavar="COLUMN", help="rows with one value stay together")
    parser.add_argument("--task", metavar="NAME", help="the task (default: by the columns)")
    parser.epilog = (
        f"{parser.epilog}\nGroups by themselves: {', '.join(GROUP_COLUMNS)}. --columns.NAME COLUMN gives a column the name that"
        " the task reads, as in fit."
    )
    arguments = parser.parse_args(words)
    shares = shares_of(arguments.split)
    parts = split(
        arguments.files, shares, seed=arguments.seed, stratify=arguments.stratify, group=arguments.group, task=arguments.task,
        columns=columns,
    )  # fmt: skip
    print(parts.write(Path(arguments.output)))
    return 0


def shares_of(text: str) -> list[float]:
    """Shares as the command line gives them.

    Raises:
        UsageError: they are no numbers.
    """
    try:
        return [float(share) for share in text.strip("[]").split(",")]
    except ValueError:
        raise UsageError(f"Expected --split to be 2 or 3 shares, as 0.8,0.1,0.1; got '{text}'.") from None
