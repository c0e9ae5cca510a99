"""Tools for data files as commands of lightning-ft and for Python.

It has no hooks: `lightning-ft data` is found by its entry point. The functions are imported when they are first asked for,
because every start of lightning-ft imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ft_datatools.converting import convert
    from lightning_ft_datatools.findings import Report
    from lightning_ft_datatools.mixing import mix
    from lightning_ft_datatools.preparing import prepare
    from lightning_ft_datatools.selection import select
    from lightning_ft_datatools.splitting import split
    from lightning_ft_datatools.survey import check

_HOME = {
    "Report": "findings", "check": "survey", "convert": "converting", "mix": "mixing", "prepare": "preparing",
    "select": "selection", "split": "splitting",
}  # fmt: skip

__all__ = ["Report", "check", "convert", "mix", "prepare", "select", "split"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
