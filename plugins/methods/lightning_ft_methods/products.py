"""Adapters whose change of weights is another product than LoRA's: elementwise (LoHa) or Kronecker's (LoKr)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft_methods.adapter import Adapter, check_positive, check_share, check_targets, check_whole, targets

if TYPE_CHECKING:
    from peft import LoHaConfig, LoKrConfig
    from torch import nn


@dataclass(frozen=True)
class LoHa(Adapter):
    """Low-rank Hadamard product: the change is the elementwise product of two low-rank matrices, of rank up to rank^2.

    W' = W + (alpha / rank) (B1 A1) * (B2 A2), A1, A2: (rank, in_features), B1, B2: (out_features, rank); B2 starts at 0
    (Hyeon-Woo et al. 2021, arXiv:2108.06098, eq. 2). A layer has 2 rank (in_features + out_features) trainable numbers.
    """

    name: ClassVar[str] = "loha"
    takes_conv1d: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = 1e-3

    rank: int = 8
    """Rank of each of the two factors."""
    alpha: float | None = None
    """Numerator of the scale; None: 2 * rank."""
    dropout: float = 0.0
    """Probability with which rows of the change are zeroed in training."""
    target_modules: str | list[str] = "all-linear"
    """Layers that are adapted: `all-linear` (all but the output head), or ends of module names."""

    def __post_init__(self) -> None:
        _check(self)

    def peft_config(self, model: nn.Module, total_steps: int) -> LoHaConfig:
        """Peft's `LoHaConfig`."""
        from peft import LoHaConfig

        return LoHaConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            alpha=2 * self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]  # peft divides it, any number does
            rank_dropout=self.dropout,
            target_modules=targets(self.target_modules),
        )


@dataclass(frozen=True)
class LoKr(Adapter):
    """Low-rank Kronecker product: the change repeats one block, scaled by the entries of another.

    W' = W + (alpha / rank) C (x) (B A), C: (f, g) and B A: (out_features / f, in_features / g) of rank `rank`, f and g factors
    near the root of the widths or `factor` (Yeh et al. 2023, arXiv:2309.14859, eq. 6); C starts at 0.
    """

    name: ClassVar[str] = "lokr"
    takes_conv1d: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = 1e-3

    rank: int = 8
    """Rank of the second factor; where it exceeds half the factor's size, that factor is a full matrix."""
    alpha: float | None = None
    """Numerator of the scale; None: 2 * rank."""
    factor: int = -1
    """Largest number of rows and columns of C; -1: near the root of the layer's width."""
    dropout: float = 0.0
    """Probability with which rows of the change are zeroed in training."""
    target_modules: str | list[str] = "all-linear"
    """Layers that are adapted: `all-linear` (all but the output head), or ends of module names."""

    def __post_init__(self) -> None:
        _check(self)
        if isinstance(self.factor, bool) or not (self.factor == -1 or self.factor >= 2):
            raise UsageError(f"Expected --method.factor to be -1 or a whole number of at least 2; got {self.factor}.")

    def peft_config(self, model: nn.Module, total_steps: int) -> LoKrConfig:
        """Peft's `LoKrConfig`."""
        from peft import LoKrConfig

        return LoKrConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            alpha=2 * self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]  # peft divides it, any number does
            rank_dropout=self.dropout,
            decompose_factor=self.factor,
            target_modules=targets(self.target_modules),
        )


def _check(method: LoHa | LoKr) -> None:
    check_whole("rank", method.rank)
    check_share("dropout", method.dropout)
    check_targets(method.target_modules)
    if method.alpha is not None:
        check_positive("alpha", method.alpha)
