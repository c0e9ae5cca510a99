"""Fine-tuning methods as a plugin of lightning-ft. Hooks only; peft is imported when a model is changed, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_ft.method import Method


@hookimpl
def register_methods() -> Iterable[type[Method]]:
    """Adapters, and ways to train a part of the model."""
    from lightning_ft_methods.adalora import AdaLoRA
    from lightning_ft_methods.freeze import Freeze
    from lightning_ft_methods.lisa import LISA
    from lightning_ft_methods.lora import LoRA
    from lightning_ft_methods.orthogonal import BOFT, OFT
    from lightning_ft_methods.products import LoHa, LoKr
    from lightning_ft_methods.prompts import PrefixTuning, PromptTuning, PTuning, PTuningV2
    from lightning_ft_methods.selective import BitFit, NormTuning
    from lightning_ft_methods.spectrum import Spectrum
    from lightning_ft_methods.vectors import IA3, VeRA

    return [
        LoRA, AdaLoRA, IA3, VeRA, OFT, BOFT, LoHa, LoKr, PrefixTuning, PromptTuning, PTuning, PTuningV2, NormTuning, BitFit,
        Freeze, Spectrum, LISA,
    ]  # fmt: skip
