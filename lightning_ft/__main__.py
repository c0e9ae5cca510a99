"""`lightning-ft`, also as `python -m lightning_ft`."""

from __future__ import annotations

import sys

from lightning_ft import cli
from lightning_ft.cli import startup
from lightning_ft.run.heap import start_again_without_cache

TRAINS = ("fit", "quickstart")
"""Commands that want a heap of their own."""


def main() -> int:
    """The whole program; what trains begins with a heap that suits it."""
    if sys.argv[1:2] and sys.argv[1] in TRAINS and not {"--help", "-h"} & set(sys.argv):
        start_again_without_cache()
    startup.begin()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
