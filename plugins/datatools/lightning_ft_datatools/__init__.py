"""Tools for data files as commands of lightning-ft and for Python: augment, check, convert, mix, prepare, select, split.

`lightning-ft data` is found by its entry point; the only hook tells `fit` which prompts are nearly the same. Everything is
imported when it is first asked for, because every start of lightning-ft imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_ft.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft_datatools.augmenting import augment as augment
    from lightning_ft_datatools.converting import convert as convert
    from lightning_ft_datatools.findings import Report as Report
    from lightning_ft_datatools.mixing import mix as mix
    from lightning_ft_datatools.preparing import prepare as prepare
    from lightning_ft_datatools.selection import select as select
    from lightning_ft_datatools.splitting import split as split
    from lightning_ft_datatools.survey import check as check


@hookimpl
def find_alike(prompts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of prompts that share 93 % of their words."""
    from lightning_ft_datatools.similar import pairs_of_different

    return [(i, j) for i, j, _ in pairs_of_different(prompts)]


def __getattr__(name: str) -> Any:
    home = {
        "Report": "findings", "augment": "augmenting", "check": "survey", "convert": "converting", "mix": "mixing",
        "prepare": "preparing", "select": "selection", "split": "splitting",
    }.get(name)  # fmt: skip
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
