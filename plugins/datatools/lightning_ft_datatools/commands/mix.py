"""`data mix`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.tables import table
from lightning_ft_datatools.commands.parser import parsed, shares_of, tool

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Write a mixture and account for it."""
    from lightning_ft_datatools.mixing import mix
    from lightning_ft_datatools.output import write_rows
    from lightning_ft_datatools.targets import check_rows

    parser = tool(
        "mix",
        "One file of several sources in given shares; how often rows are repeated is counted.",
        "chat.jsonl code.jsonl --weights 3,1 --count 10000 --output mixed.jsonl",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl file")
    parser.add_argument("--weights", metavar="SHARES", help="share of each source, as 3,1 (default: by size)")
    parser.add_argument("--temperature", type=float, metavar="T", help="shares by size to the power of 1/T")
    parser.add_argument("--count", type=int, metavar="N", help="rows of the mixture (default: as many as there are)")
    parser.add_argument("--to", default="messages", metavar="FORMAT", help="format, as for convert (default: messages)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice and the order (default: 0)")
    arguments = parsed(parser, argv)
    check_rows(arguments.output, arguments.files)
    weights = None if arguments.weights is None else shares_of(arguments.weights, "--weights", "3,1")
    mixed = mix(
        arguments.files, weights=weights, temperature=arguments.temperature, count=arguments.count, to=arguments.to,
        seed=arguments.seed, task=arguments.task, columns=arguments.columns,
    )  # fmt: skip
    write_rows(arguments.output, mixed.rows)
    cells = [(name, *(f"{number:,}" for number in numbers)) for name, numbers in mixed.counts.items()]
    print(table(("source", "rows", "taken", "repeated"), cells, numbers=frozenset({1, 2, 3})))
    print(f"\n{arguments.output}: {len(mixed.rows):,} rows as {arguments.to}")
    return 0
