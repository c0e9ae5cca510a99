"""`data show`: rows as they train."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.tables import table
from lightning_ft.errors import UsageError
from lightning_ft.types import Conversation
from lightning_ft_datatools.commands.parser import parsed, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import Example, Row
    from lightning_ft_datatools.drawing import Drawn
    from lightning_ft_datatools.reading import Reading

NO_LIMIT = 2**31
"""Tokens of a row that is not cut."""


def main(argv: Sequence[str]) -> int:
    """Print some rows with their mask."""
    from lightning_ft_datatools.reading import read

    parser = tool(
        "show",
        "Rows as they train: the rendered text, what of it has a loss, special tokens, and what would be cut.",
        "rows.jsonl --model PATH --rows 3",
    )
    parser.add_argument("--model", default="embedded", metavar="MODEL", help="whose tokenizer (default: embedded)")
    parser.add_argument("--template", default="auto", metavar="NAME", help="chat template, as for fit (default: auto)")
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show (default: 3)")
    parser.add_argument("--start", type=int, default=1, metavar="N", help="the first row to show (default: 1)")
    parser.add_argument("--max_length", type=int, metavar="N", help="tokens at which rows are cut (default: the context)")
    arguments = parsed(parser, argv)
    for name in ("rows", "start"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"Expected --{name} to be at least 1; got {getattr(arguments, name)}.")
    reading = read(arguments.files, arguments.task, arguments.columns)
    rows = reading.rows[arguments.start - 1 : arguments.start - 1 + arguments.rows]
    if not rows:
        raise UsageError(f"Expected --start to be at most {len(reading.rows)}, the number of rows; got {arguments.start}.")
    _show(reading, rows, arguments)
    return 0


def _show(reading: Any, rows: Sequence[Any], arguments: Any) -> None:
    from rich.console import Console

    from lightning_ft.data.encode import Encoder
    from lightning_ft_datatools.drawing import draw
    from lightning_ft_datatools.reading import texts_of
    from lightning_ft_datatools.sides import sides

    texts = texts_of(arguments.model, arguments.template, arguments.max_length)
    whole = Encoder(texts.tokenizer, texts.template, NO_LIMIT)
    console = Console(highlight=False, soft_wrap=True)
    roles: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for row, example in reading.examples(_with_shots(reading, rows)):
        for side in sides(example):
            drawn = draw(texts.encoder, whole, texts.tokenizer, side, row.id)
            way = f"template {texts.template.name}" if isinstance(side.example, Conversation) else "no template"
            _print(console, ", ".join(filter(None, (f"{row.id}  task {reading.task.name}", way, side.name))), drawn)
            for role, (tokens, supervised) in drawn.encoded.roles.items():
                roles[role] += tokens
                trained[role] += supervised
    cells = [(role, f"{n:,}", f"{trained[role]:,}", f"{100 * trained[role] / max(1, n):.1f} %") for role, n in roles.items()]
    print(table(("role", "tokens", "trained", "share"), cells, numbers=frozenset({1, 2, 3})))


def _with_shots(reading: Reading, rows: Sequence[Any]) -> list[Any]:
    """The rows with those that a few-shot task shows before them, here out of all rows (`fit` takes training rows alone)."""
    from lightning_ft.data.shots import Shots

    if not reading.task.demonstrations:
        return list(rows)
    shots = Shots(reading.task, 0, reading.columns)
    for number, row in enumerate(reading.rows):
        shots.offer(*_first(reading, row), number)
    shots.settle(["train"] * len(reading.rows))
    return [replace(row, values=shots.before(row, _first(reading, row)[1])) for row in rows]


def _first(reading: Reading, row: Row) -> tuple[Row, Example]:
    """The first that a row stands for, as a row and as an example."""
    return next(iter(reading.examples([row])))


def _print(console: Any, heading: str, drawn: Drawn) -> None:
    from rich.text import Text

    from lightning_ft_datatools.drawing import TAB, underlined, visible

    encoded = drawn.encoded
    count = f"{len(encoded.input_ids):,} tokens, {encoded.supervised:,} of them train"
    if encoded.truncated:
        count += f"; {encoded.truncated:,} more are cut, {encoded.supervised_lost:,} of them would train"
    console.print(f"[bold]{heading.replace('[', chr(92) + '[')}[/bold]: {count}")
    if console.is_terminal and not console.no_color:
        text = Text()
        for piece in drawn.pieces:
            style = "strike red" if piece.cut else "bold green" if piece.trained else "cyan" if piece.special else ""
            text.append(visible(piece.text).expandtabs(TAB), style=style)
        console.print(text)
    else:
        for line in underlined(drawn.pieces):
            print(line)
    print()
