"""A method of one option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_ft.method import Method

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LastNorm(Method):
    """Only the norm after the last decoder layer trains."""

    name = "last_norm"
    trains_base = True

    scale: float = 1.0
    """Factor on its weight before training; 1: as pretrained."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model itself, all but the final norm frozen."""
        model.requires_grad_(False)
        norm = [module for module in model.modules() if "norm" in type(module).__name__.lower()][-1]
        norm.requires_grad_(True)
        for parameter in norm.parameters():
            parameter.data.mul_(self.scale)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: there is nothing beside the base weights."""
        return model
