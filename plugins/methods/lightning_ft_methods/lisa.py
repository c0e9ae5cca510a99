"""LISA: full fine-tuning in turns, a few decoder layers at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.method import Method
from lightning_ft_methods.adapter import check_whole
from lightning_ft_methods.freeze import layers_for

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor, nn


@dataclass(frozen=True)
class LISA(Method):
    """Train embeddings, final norm and head at every step, and `active_layers` decoder layers drawn every `interval` steps.

    All layers are drawn with the same probability (Pan et al. 2024, arXiv:2403.17919, algorithm 1 and section 3.2).
    Gradients and optimiser state exist for what is active alone: the state of a layer goes when its turn is over, and starts
    from nothing when it is drawn again. Which layers are active is a function of `layer_seed` and the step.
    """

    name: ClassVar[str] = "lisa"
    trains_base: ClassVar[bool] = True
    trains_in_turns: ClassVar[bool] = True

    active_layers: int = 2
    """Decoder layers that train at a time."""
    interval: int = 20
    """Steps of a turn."""
    layer_seed: int = 0
    """Decides which layers are drawn."""

    def __post_init__(self) -> None:
        check_whole("active_layers", self.active_layers)
        check_whole("interval", self.interval)
        check_whole("layer_seed", self.layer_seed, 0)

    def training_tokens(self, tokens: Sequence[int]) -> Method:
        """The method itself: embedding and head train at every step."""
        return self

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model itself; every parameter may train, `before_step` says which do.

        Raises:
            UsageError: the model has no list of decoder layers, or fewer than are to be active.
        """
        layers = layers_for(model, self.name)
        if self.active_layers > len(layers):
            raise UsageError(
                f"Expected --method.active_layers of at most {len(layers)}, the model's layers; got {self.active_layers}."
            )
        model.requires_grad_(True)
        return model

    def before_step(self, model: nn.Module, step: int) -> Collection[nn.Parameter]:
        """Let the layers of this step's turn train; those of the others rest, without optimiser state."""
        active = self.drawn(len(layers := layers_for(model, self.name)), step)
        resting = [p for i, layer in enumerate(layers) if i not in active for p in layer.parameters()]
        for i in active:
            layers[i].requires_grad_(True)
        for parameter in resting:
            parameter.requires_grad_(False)
        return resting

    def drawn(self, layers: int, step: int) -> frozenset[int]:
        """The active ones of so many layers at a step (0-based)."""
        import torch

        generator = torch.Generator().manual_seed(self.layer_seed * 1_000_003 + step // self.interval)
        return frozenset(torch.randperm(layers, generator=generator)[: self.active_layers].tolist())

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """All parameters: those that rest have trained before, or will."""
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` returned."""
        model.requires_grad_(True)
        super().load_trainable_state(model, state)
