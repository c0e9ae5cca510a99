"""lightning-ft: fine-tune language models on PyTorch Lightning, with plugins, and with proof that they got better."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ft.api import Run, evaluate, fit, generate
    from lightning_ft.config import TrainingConfig
    from lightning_ft.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["Run", "TrainingConfig", "__version__", "evaluate", "fit", "generate", "hookimpl"]

_HOME = {"TrainingConfig": "config", "hookimpl": "hookspecs", "Run": "api", "fit": "api", "evaluate": "api", "generate": "api"}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import lightning_ft` costs no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"lightning_ft.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lightning_ft' has no attribute '{name}'")
