"""`data split`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.data.split import SPLITS
from lightning_ft_datatools.commands.parser import add_split, parsed, split_shares, tool
from lightning_ft_datatools.targets import check_folder

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Split files and write a file for each part."""
    from lightning_ft_datatools.splitting import split

    parser = tool(
        "split",
        "Training, validation and test files; rows with the same or nearly the same prompt stay together.",
        "rows.jsonl --output parts --split 0.8,0.1,0.1",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where train.jsonl and the others go")
    add_split(parser)
    arguments = parsed(parser, argv)
    shares = split_shares(arguments.split)
    folder = check_folder(arguments.output, arguments.files, [f"{name}.jsonl" for name in SPLITS])
    parts = split(
        arguments.files, shares, seed=arguments.seed, stratify=arguments.stratify, group=arguments.group, task=arguments.task,
        columns=arguments.columns,
    )  # fmt: skip
    print(parts.write(folder))
    return 0
