"""`lightning-ft`, also as `python -m lightning_ft`."""

from __future__ import annotations

import sys

from lightning_ft.cli import main

if __name__ == "__main__":
    sys.exit(main())
