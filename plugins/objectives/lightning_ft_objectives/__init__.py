"""Preference objectives as a plugin of lightning-ft. Hooks only; torch is imported when a loss is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_ft.objective import Objective


@hookimpl
def register_objectives() -> Iterable[type[Objective]]:
    """Objectives that learn from a better and a worse answer."""
    from lightning_ft_objectives.dpo import DPO
    from lightning_ft_objectives.orpo import ORPO
    from lightning_ft_objectives.simpo import SimPO

    return [DPO, SimPO, ORPO]
