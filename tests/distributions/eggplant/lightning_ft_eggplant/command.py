"""The command `lightning-ft eggplant`."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Say which fruits were named."""
    print("purple:", " ".join(argv))
    return 0
