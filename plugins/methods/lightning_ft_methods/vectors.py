"""Adapters that learn vectors only: (IA)^3 scales activations, VeRA scales two random matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft_methods.adapter import Adapter, check_positive, check_share, check_targets, check_whole, has_conv1d, targets

if TYPE_CHECKING:
    from peft import IA3Config, VeraConfig
    from torch import nn


@dataclass(frozen=True)
class IA3(Adapter):
    """Learn one number for each key, each value and each hidden unit of the feed-forward part.

    For a key or value layer y = l * (W x), l of shape (out_features); for the feed-forward layer y = W (l * x), l of shape
    (in_features). All l start at 1, so training starts at the pretrained function (Liu et al. 2022, arXiv:2205.05638,
    section 3.3). Merged: W' = diag(l) W, or W diag(l).
    """

    name: ClassVar[str] = "ia3"
    can_shard: ClassVar[bool] = True
    learning_rate: ClassVar[float | None] = 3e-3

    target_modules: list[str] | None = None
    """Ends of the names of the layers that are scaled; None: keys, values and the last feed-forward layer of known models."""
    feedforward_modules: list[str] | None = None
    """Those of them whose input is scaled instead of their output; None: the feed-forward layer of known models."""

    def __post_init__(self) -> None:
        if (self.target_modules is None) != (self.feedforward_modules is None):
            given = "target_modules" if self.feedforward_modules is None else "feedforward_modules"
            raise UsageError(
                "Expected --method.target_modules and --method.feedforward_modules (as [] for none) together, or neither; "
                f"got {given} alone."
            )
        if self.target_modules is not None:
            check_targets(self.target_modules)
            foreign = sorted(set(self.feedforward_modules or ()) - set(self.target_modules))
            if foreign:
                raise UsageError(
                    f"Expected --method.feedforward_modules to be among --method.target_modules; got {foreign[0]} besides."
                )

    def peft_config(self, model: nn.Module, total_steps: int) -> IA3Config:
        """Peft's `IA3Config`.

        Raises:
            UsageError: the model's type is not among those that peft knows the layers of.
        """
        from peft import IA3Config
        from peft.utils.constants import (
            TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
        )
        from peft.utils.constants import (
            TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS,
        )

        kind = getattr(getattr(model, "config", None), "model_type", "")
        if self.target_modules is None and (kind not in TARGETS or kind not in FEEDFORWARD):
            raise UsageError(
                f"Expected --method.target_modules and --method.feedforward_modules for a model of type '{kind}', whose keys, "
                "values and feed-forward layers are not known; got none."
            )
        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=list(TARGETS[kind] if self.target_modules is None else self.target_modules),
            feedforward_modules=list(FEEDFORWARD[kind] if self.feedforward_modules is None else self.feedforward_modules),
            fan_in_fan_out=has_conv1d(model),
        )


@dataclass(frozen=True)
class VeRA(Adapter):
    """Two random matrices shared by all layers stay fixed; each layer learns how their rows are scaled.

    y = W x + b * (B (d * (A x))), A: (rank, in_features) and B: (out_features, rank) random and frozen, d: (rank) started at
    `d_initial`, b: (out_features) started at 0, so that training starts at the pretrained function (Kopiczko et al. 2023,
    arXiv:2310.11454, eq. 2). A layer has rank + out_features trainable numbers. A and B are saved with the adapter.
    """

    name: ClassVar[str] = "vera"
    learning_rate: ClassVar[float | None] = 4e-3

    rank: int = 256
    """Rows of A; the vectors are short, so it is far higher than LoRA's."""
    d_initial: float = 0.1
    """Value at which all entries of d start."""
    dropout: float = 0.0
    """Probability with which inputs of A are zeroed in training."""
    target_modules: str | list[str] = "all-linear"
    """Layers that are adapted: `all-linear` (all but the output head), or ends of module names."""
    projection_seed: int = 0
    """Seed of A and B."""

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        check_whole("projection_seed", self.projection_seed, 0)
        check_positive("d_initial", self.d_initial)
        check_share("dropout", self.dropout)
        check_targets(self.target_modules)

    def peft_config(self, model: nn.Module, total_steps: int) -> VeraConfig:
        """Peft's `VeraConfig`."""
        from peft import VeraConfig

        return VeraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            d_initial=self.d_initial,
            vera_dropout=self.dropout,
            target_modules=targets(self.target_modules),
            projection_prng_key=self.projection_seed,
            fan_in_fan_out=has_conv1d(model),
        )
