"""Fine-tuning methods as a plugin of lightning-ft. Hooks only; peft is imported when a model is changed, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_ft.method import Method


@hookimpl
def register_methods() -> Iterable[type[Method]]:
    """LoRA and layer freezing."""
    from lightning_ft_methods.freeze import Freeze
    from lightning_ft_methods.lora import LoRA

    return [LoRA, Freeze]
