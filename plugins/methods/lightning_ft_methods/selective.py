"""Partial fine-tuning without new parameters: norms or biases alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.method import Method
from lightning_ft_methods.adapter import Adapter

if TYPE_CHECKING:
    from peft import LNTuningConfig
    from torch import nn


@dataclass(frozen=True)
class NormTuning(Adapter):
    """Train the gains (and shifts) of all normalisation layers, and nothing else (Zhao et al. 2023, arXiv:2312.11420)."""

    name: ClassVar[str] = "norm_tuning"
    learning_rate: ClassVar[float | None] = 1e-3
    # In float32 the gains make the activations behind them float32, which bfloat16 layers would not take.
    trains_base: ClassVar[bool] = True
    can_shard: ClassVar[bool] = True

    def peft_config(self, model: nn.Module, total_steps: int) -> LNTuningConfig:
        """Peft's `LNTuningConfig` with the names of the model's norms.

        Raises:
            UsageError: the model has none.
        """
        from peft import LNTuningConfig

        names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_norm(module)})
        if not names:
            raise UsageError(
                f"Expected a model with normalisation layers for --method norm_tuning; got {type(model).__name__} without."
            )
        return LNTuningConfig(task_type="CAUSAL_LM", target_modules=names)


@dataclass(frozen=True)
class BitFit(Method):
    """Train the biases of the pretrained model and nothing else (Ben Zaken et al. 2021, arXiv:2106.10199).

    For models whose layers have biases, as GPT-2, OPT or Qwen 2; Llama has none.
    """

    name: ClassVar[str] = "bitfit"
    learning_rate: ClassVar[float | None] = 1e-3
    trains_base: ClassVar[bool] = True
    can_shard: ClassVar[bool] = True

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model itself, with gradients for its biases alone.

        Raises:
            UsageError: it has none.
        """
        from lightning_ft.optim import is_bias

        model.requires_grad_(False)
        biases = [p for name, p in model.named_parameters() if is_bias(name)]
        if not biases:
            kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            raise UsageError(
                f"Expected a model with biases for --method bitfit; got {kind}, which has none: type --method norm_tuning."
            )
        for bias in biases:
            bias.requires_grad_(True)
        return model


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: it is called so, and has a gain but no weights of a layer."""
    gain = getattr(module, "weight", None)
    return type(module).__name__.endswith("Norm") and gain is not None and gain.ndim == 1
