"""Whether there are GPU kernels of our own here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from types import ModuleType


@functools.cache
def kernels() -> ModuleType | None:
    """The module of Triton kernels; None where there is no GPU or no Triton (PyTorch for Windows comes without)."""
    if not torch.cuda.is_available():
        return None
    try:
        from lightning_ft.engine import triton_kernels
    except ImportError:
        return None
    return triton_kernels
