"""`data prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.tables import table
from lightning_ft.data.split import SPLITS
from lightning_ft_datatools.commands.parser import add_split, parsed, split_shares, tool
from lightning_ft_datatools.targets import check_folder

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Prepare and say what came of it."""
    from lightning_ft_datatools.preparing import prepare

    parser = tool(
        "prepare",
        "From raw files to train, validation and test: read, check, clean, split, shuffle and write.",
        "raw.csv --output ready --split 0.8,0.1,0.1",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the parts, the report and the quarantine go")
    add_split(parser)
    parser.add_argument("--against", action="append", default=[], metavar="FILE", help="a benchmark that must not be there")
    parser.add_argument("--lower", action="store_true", help="all texts in lower case")
    parser.add_argument("--model", default="embedded", metavar="MODEL", help="whose tokenizer (default: embedded)")
    arguments = parsed(parser, argv)
    shares = split_shares(arguments.split)
    written = [*(f"{name}.jsonl" for name in SPLITS), "data.quarantine.jsonl", "data.changes.jsonl", "report.json"]
    check_folder(arguments.output, arguments.files, written)
    made = prepare(
        arguments.files, arguments.output, shares=shares, seed=arguments.seed,
        stratify=arguments.stratify, group=arguments.group, task=arguments.task, model=arguments.model,
        against=arguments.against, lower=arguments.lower, columns=arguments.columns,
    )  # fmt: skip
    cells = [(name, f"{count:,}", str(made.folder / f"{name}.jsonl")) for name, count in made.rows.items()]
    cells.append(("quarantine", f"{made.removed:,}", str(made.folder / "data.quarantine.jsonl")))
    print(table(("part", "rows", "file"), cells, numbers=frozenset({1})))
    print(f"\n{made.report.rows_read:,} rows read, {made.changed:,} changed; proof: {made.proof}")
    print(f"report: {made.folder / 'report.html'}")
    return 0
