"""What the parsers of the tools have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.parser import CommandParser, command
from lightning_ft.data.split import GROUP_COLUMNS
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft_datatools.survey import Options


def tool(name: str, purpose: str, example: str) -> CommandParser:
    """The parser of `lightning-ft data NAME`: files, their columns, and the task that reads them."""
    parser = command(f"data {name}", purpose, f"example: lightning-ft data {name} {example}")
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files, globs or folders")
    parser.add_argument("--task", metavar="NAME", help="the task (default: by the columns)")
    columns = "--columns.NAME COLUMN gives a column the name that the task reads (a|b: the first that a row has), as in fit."
    parser.epilog = f"{parser.epilog}\n{columns}"
    return parser


def add_survey(parser: CommandParser) -> None:
    """The options of a survey."""
    parser.add_argument("--model", default="embedded", metavar="MODEL", help="whose tokenizer (default: embedded)")
    parser.add_argument("--template", default="auto", metavar="NAME", help="chat template, as for fit (default: auto)")
    parser.add_argument("--max_length", type=int, metavar="N", help="tokens at which rows are cut (default: the context)")
    parser.add_argument("--against", action="append", default=[], metavar="FILE", help="a benchmark that must not be there")


def survey_options(arguments: Any) -> Options:
    """What `add_survey` gave."""
    from lightning_ft_datatools.survey import Options

    given = arguments
    return Options(given.task, given.model, given.template, given.max_length, tuple(given.against), given.columns)


def add_split(parser: CommandParser) -> None:
    """The options of a split."""
    parser.add_argument("--split", default="0.8,0.2", metavar="SHARES", help="of train, validation, test (default: 0.8,0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another split (default: 0)")
    parser.add_argument("--stratify", metavar="COLUMN", help="every part gets its share of each value ('class': the task's)")
    known = ", ".join(GROUP_COLUMNS)
    parser.add_argument(
        "--group", action="append", default=[], metavar="COLUMN", help=f"rows with one value stay together, as of {known}"
    )


def parsed(parser: CommandParser, argv: Sequence[str]) -> Any:
    """The arguments, with `columns` as a mapping.

    Raises:
        UsageError: an unknown flag, a missing or a wrong value.
    """
    words, columns = split_columns(argv)
    arguments = parser.parse_args(words)
    arguments.columns = columns
    return arguments


def split_columns(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words without `--columns.NAME COLUMN`, and these as a mapping.

    Raises:
        UsageError: a name without its column.
    """
    rest, columns = [], {}
    words = iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if not flag.startswith("--columns."):
            rest.append(word)
            continue
        column = value or next(words, "")
        if not column or column.startswith("--"):
            raise UsageError(f"Expected a value after {flag}; got none.")
        columns[flag.removeprefix("--columns.")] = column
    return rest, columns


def shares_of(text: str, flag: str, example: str) -> list[float]:
    """Shares as the command line gives them.

    Raises:
        UsageError: they are no numbers.
    """
    try:
        return [float(share) for share in text.strip("[]").split(",")]
    except ValueError:
        raise UsageError(f"Expected {flag} to be shares, as {example}; got '{text}'.") from None


def split_shares(text: str) -> list[float]:
    """The shares of `--split`, as `fit` takes them.

    Raises:
        UsageError: they are no two or three numbers that add up to 1.
    """
    shares = shares_of(text, "--split", "0.8,0.1,0.1")
    if len(shares) not in (2, 3) or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UsageError(f"Expected --split to be 2 or 3 shares that add up to 1, as 0.8,0.1,0.1; got {text}.")
    return shares
