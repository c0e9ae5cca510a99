"""Partial fine-tuning: the lower decoder layers stay as they are, the upper ones train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.method import Method
from lightning_ft_methods.adapter import check_whole

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
    can_shard: ClassVar[bool] = True

    freeze_ratio: float = 0.5
    """Share of the decoder layers, counted from the bottom, that stay frozen: 0 to 1, rounded down to whole layers."""
    train_layers: int | None = None
    """How many decoder layers, counted from the top, train, instead of a ratio; 0: the final norm and the head only."""
    train_modules: list[str] | None = None
    """Names, or ends of names, of the modules that train, as [mlp, lm_head] or [layers.3], instead of whole upper layers."""

    def __post_init__(self) -> None:
        if isinstance(self.freeze_ratio, bool) or not 0 <= self.freeze_ratio <= 1:
            raise UsageError(f"Expected --method.freeze_ratio to be from 0 to 1; got {self.freeze_ratio}.")
        if self.train_layers is not None:
            check_whole("train_layers", self.train_layers, 0)
        given = [self.freeze_ratio != 0.5, self.train_layers is not None, self.train_modules is not None]
        if sum(given) > 1:
            raise UsageError(
                "Expected one of --method.freeze_ratio, --method.train_layers and --method.train_modules; got several."
            )
        if self.train_modules is not None and not self.train_modules:
            raise UsageError("Expected --method.train_modules to name modules as [mlp,lm_head]; got none.")

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model itself, the lower part, or all but the named modules, without gradients.

        Raises:
            UsageError: the model has no list of `config.num_hidden_layers` decoder layers, fewer than are to train, or no
                module of a name in `train_modules`.
        """
        from torch import nn

        if self.train_modules is not None:
            return self._only_named(model)
        model.requires_grad_(True)
        if self.freeze_ratio == 0:
            return model
        layers = layers_for(model, self.name)
        # 1e-9: a third of 3 layers is one layer, though 3 * (1 / 3) may fall a rounding error short.
        frozen = int(self.freeze_ratio * len(layers) + 1e-9) if self.train_layers is None else len(layers) - self.train_layers
        if frozen < 0:
            raise UsageError(f"Expected --method.train_layers of at most {len(layers)}, the model's; got {self.train_layers}.")
        for layer in layers[:frozen]:
            layer.requires_grad_(False)
        inner = {id(module) for layer in layers for module in layer.modules()}
        for module in model.modules():
            if isinstance(module, nn.Embedding) and id(module) not in inner:
                module.requires_grad_(False)
        return model

    def _only_named(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        modules = dict(model.named_modules())
        for wanted in self.train_modules or ():
            found = [module for name, module in modules.items() if name == wanted or name.endswith(f".{wanted}")]
            if not any(p is not None for module in found for p in module.parameters()):
                known = sorted(
                    {name.rpartition(".")[2] for name, m in modules.items() if next(m.parameters(), None) is not None}
                )
                known = [name for name in known if name and not name.isdigit()]
                raise UsageError(
                    f"Expected --method.train_modules to name modules of this model ({', '.join(known)}); got {wanted}."
                )
            for module in found:
                module.requires_grad_(True)
        return model


def layers_for(model: nn.Module, method: str) -> list[nn.Module]:
    """The model's decoder layers, bottom first; `method` asks for them.

    Raises:
        UsageError: there is no list of `config.num_hidden_layers` layers.
    """
    from lightning_ft.engine.model import decoder_layers

    layers = decoder_layers(model)
    if not layers:
        found = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UsageError(f"Expected a model with a list of decoder layers for --method {method}; got {found} without one.")
    return layers
