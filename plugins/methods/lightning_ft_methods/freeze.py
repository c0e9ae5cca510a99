"""Partial fine-tuning: the lower decoder layers stay as they are, the upper ones train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.method import Method

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Freeze(Method):
    """Train the upper decoder layers, the final norm and the head; keep everything below frozen.

    With L decoder layers, layers 0 ... floor(freeze_ratio * L) - 1 are frozen, and the embeddings with them: lower
    layers hold what all texts share (Lee et al. 2019, arXiv:1911.03090). The backward pass ends at the lowest
    layer that trains. Ratio 0 is full fine-tuning; ratio 1 trains the final norm and the head only.

    Where the head shares its matrix with the embedding (tied, as in GPT-2), that matrix is frozen whenever
    the embedding is: training it would change the input of the frozen layers.
    """

    name: ClassVar[str] = "freeze"
    trains_base: ClassVar[bool] = True

    freeze_ratio: float = 0.5
    """Share of the decoder layers, counted from the bottom, that stay frozen: 0 to 1, rounded down to whole layers."""

    def __post_init__(self) -> None:
        if isinstance(self.freeze_ratio, bool) or not 0 <= self.freeze_ratio <= 1:
            raise UsageError(f"Expected --method.freeze_ratio to be from 0 to 1; got {self.freeze_ratio}.")

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model itself, the lower part without gradients.

        Raises:
            UsageError: the model has no list of `config.num_hidden_layers` decoder layers.
        """
        from torch import nn

        model.requires_grad_(True)
        if self.freeze_ratio == 0:
            return model
        layers = decoder_layers(model)
        # 1e-9: a third of 3 layers is one layer, though 3 * (1 / 3) may fall a rounding error short.
        for layer in layers[: int(self.freeze_ratio * len(layers) + 1e-9)]:
            layer.requires_grad_(False)
        inner = {id(module) for module in layers.modules()}
        for module in model.modules():
            if isinstance(module, nn.Embedding) and id(module) not in inner:
                module.requires_grad_(False)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """The model itself: there is nothing beside the base weights."""
        return model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's decoder layers, bottom first.

    Raises:
        UsageError: there is not exactly one list of `config.num_hidden_layers` layers.
    """
    from torch import nn

    config = getattr(model, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        found = getattr(config, "model_type", type(model).__name__)
        raise UsageError(f"Expected a model with a list of decoder layers for --method freeze; got {found} without one.")
    # Lists inside a layer (experts) may have the same length by chance; the outermost comes first.
    return lists[0]
