"""Tools for data files as commands of lightning-ft and for Python: check, convert, mix, prepare, select, split.

It has no hooks: `lightning-ft data` is found by its entry point. The functions are imported when they are first asked for,
because every start of lightning-ft imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ft_datatools.converting import convert as convert
    from lightning_ft_datatools.findings import Report as Report
    from lightning_ft_datatools.mixing import mix as mix
    from lightning_ft_datatools.preparing import prepare as prepare
    from lightning_ft_datatools.selection import select as select
    from lightning_ft_datatools.splitting import split as split
    from lightning_ft_datatools.survey import check as check


def __getattr__(name: str) -> Any:
    home = {
        "Report": "findings", "check": "survey", "convert": "converting", "mix": "mixing", "prepare": "preparing",
        "select": "selection", "split": "splitting",
    }.get(name)  # fmt: skip
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
