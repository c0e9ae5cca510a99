"""Optimisers as a plugin of lightning-ft. Hooks only; torch is imported when the optimisers are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.optim import Optimizer


@hookimpl
def register_optimizers() -> Iterable[type[Optimizer]]:
    """Adafactor, APOLLO, GaLore, Lion and Muon."""
    from lightning_ft_optimizers.adafactor import Adafactor
    from lightning_ft_optimizers.apollo import APOLLO
    from lightning_ft_optimizers.galore import GaLore
    from lightning_ft_optimizers.lion import Lion
    from lightning_ft_optimizers.muon import Muon

    return [Adafactor, APOLLO, GaLore, Lion, Muon]
