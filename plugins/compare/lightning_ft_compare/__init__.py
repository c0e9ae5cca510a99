"""Models side by side: the command `lightning-ft compare`, `compare` and `compare_models`. There are no hooks.

Everything is imported when it is first asked for, because every start of lightning-ft imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ft_compare.comparing import compare as compare
    from lightning_ft_compare.judging import Judge as Judge
    from lightning_ft_compare.judging import JudgedAnswers as JudgedAnswers
    from lightning_ft_compare.judging import compare_models as compare_models
    from lightning_ft_compare.results import Report as Report


def __getattr__(name: str) -> Any:
    home = {
        "Judge": "judging", "JudgedAnswers": "judging", "Report": "results", "compare": "comparing",
        "compare_models": "judging",
    }.get(name)  # fmt: skip
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
