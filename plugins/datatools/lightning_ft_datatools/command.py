"""The command `lightning-ft data`: one word chooses the tool."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

TOOLS = {
    "check": ("lightning_ft_datatools.commands.check", "what is wrong with data files, with the line of each issue"),
    "review": ("lightning_ft_datatools.commands.review", "flagged rows one by one: accept, reject or edit them"),
    "split": ("lightning_ft_datatools.commands.split", "training, validation and test without a prompt that two of them have"),
    "select": ("lightning_ft_datatools.commands.select", "fewer rows: the most different ones, or the best by a stated score"),
    "augment": ("lightning_ft_datatools.commands.augment", "further training rows: the prompt in other words, or with slips"),
    "mix": ("lightning_ft_datatools.commands.mix", "one file of several sources in given shares"),
    "convert": ("lightning_ft_datatools.commands.convert", "rows in another format that can hold them"),
    "prepare": ("lightning_ft_datatools.commands.prepare", "read, check, clean, split, shuffle and write in one call"),
    "show": ("lightning_ft_datatools.commands.show", "the text of rows as they train, with the loss mask drawn"),
}
"""Module and purpose of each tool."""


def main(argv: Sequence[str]) -> int:
    """Run a tool."""
    name, *rest = argv or ("--help",)
    if name in ("--help", "-h", "help"):
        print("Usage: lightning-ft data TOOL FILE [OPTIONS]\n\nTools:")
        print("\n".join(f"  {tool:<8} {purpose}" for tool, (_, purpose) in TOOLS.items()))
        print("\n`lightning-ft data TOOL --help` shows the options of a tool.")
        return 0
    if name not in TOOLS:
        raise UsageError(f"Expected a tool of `lightning-ft data --help`, got '{name}'.{did_you_mean(name, TOOLS)}")
    return int(importlib.import_module(TOOLS[name][0]).main(rest))
