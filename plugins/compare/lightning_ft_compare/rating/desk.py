"""The terminal of a rating: two answers are shown, a key is asked for, and what it says is noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli.terminal import END, has_keys, read_key, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel

    from lightning_ft_compare.rating.folder import Choice
    from lightning_ft_compare.rating.session import Session, View

KEYS = """l left is better, r right is better (or the arrows), t tie, b both bad,
s skip, u back, v show again, q stop, ? this list"""
SAID = {"left": "left is better", "right": "right is better", "tie": "tie", "both_bad": "both bad", "skip": "skipped"}
"""Answers in words."""
SIDE_BY_SIDE = 100
"""Columns from which on the answers stand beside each other."""
_ASK = "[l]eft [r]ight [t]ie [b]oth bad [s]kip [u] back [q] stop [?] > "
_LAST = "That was the last one: [u] back, Enter or [q] ends > "
_CHOICES: dict[str, Choice] = {
    "l": "left", "r": "right", "t": "tie", "b": "both_bad", "\x1b[D": "left", "\x1b[C": "right", "\x1bOD": "left",
    "\x1bOC": "right",
}  # fmt: skip


def ask(session: Session) -> None:
    """Ask until every pair was asked about, or until `q` or the end of the input."""
    from rich.console import Console

    console = Console(highlight=False)
    print(KEYS + ("" if has_keys() else ", each in a line of its own"))
    shown = None
    # Behind the last pair the last answer can be taken back; without any there is nothing to ask.
    while session.total:
        view = session.view
        if view is None:
            key = read_key(_LAST).lower()
            if key in (END, ""):
                return
            if key != "u":
                print(KEYS)
                continue
            session.back()
            continue
        if view.number != shown:
            _show(console, view)
            shown = view.number
        _question(console, view)
        typed = read_key(_ASK)
        key = typed.lower() if len(typed) == 1 else typed
        if key == END:
            return
        if key in _CHOICES:
            session.answer(_CHOICES[key])
        elif key == "s":
            session.skip()
        elif key == "v":
            shown = None
        elif key == "u":
            if not session.back():
                print("This is the first one.")
        else:
            print(KEYS)


def _show(console: Console, view: View) -> None:
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Rule(Text(f"{view.number:,} of {view.total:,}", style="bold")))
    console.print(_panel("Prompt", view.prompt, "cyan"))
    panels = _panel("Left", view.left, "magenta"), _panel("Right", view.right, "green")
    if console.width < SIDE_BY_SIDE:
        console.print(*panels, sep="\n")
        return
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    console.print(grid)


def _panel(title: str, text: str, style: str) -> Panel:
    from rich.panel import Panel
    from rich.text import Text

    # Text, never a str: what data hold is no markup.
    return Panel(Text(visible(text).expandtabs(4) or "(empty)"), title=Text(title), title_align="left", border_style=style)


def _question(console: Console, view: View) -> None:
    from rich.text import Text

    part = f" ({view.part} of {view.parts})" if view.parts > 1 else ""
    line = Text(f"{view.question}{part}" if view.criterion.startswith("own_") else f"{view.criterion}{part}: {view.question}")
    if view.chosen:
        line.append(f"  (so far: {SAID[view.chosen]})", style="yellow")
    console.print(line)
