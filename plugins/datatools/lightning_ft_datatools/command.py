"""The command `lightning-ft data`: one word chooses the tool."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

TOOLS = {"show": ("lightning_ft_datatools.show", "the text of rows as they train, with the loss mask drawn")}
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
