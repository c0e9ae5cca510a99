"""Adapters that turn the pretrained weights instead of adding to them: OFT and BOFT."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lightning_ft.backbone import quiet_peft
from lightning_ft.errors import UsageError
from lightning_ft_methods.adapter import (
    Adapter,
    adapted_layers,
    check_share,
    check_targets,
    check_whole,
    has_conv1d,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import BOFTConfig, OFTConfig
    from torch import Tensor, nn


@dataclass(frozen=True)
class OFT(Adapter):
    """Orthogonal fine-tuning: the inputs of each layer are rotated in blocks.

    y = W (R x), R: (in_features, in_features) block-diagonal with orthogonal blocks of `block_size`, each from a
    skew-symmetric Q by Cayley's transform R = (I + Q) (I - Q)^-1, Q = 0 at the start (Qiu et al. 2023, arXiv:2306.07280,
    section 3.2; with inputs rotated as in arXiv:2506.19847). Angles between neurons, so what the weights mean to one another,
    are kept. A layer has in_features * (block_size - 1) / 2 trainable numbers. Merged: W' = W R.
    """

    name: ClassVar[str] = "oft"
    takes_conv1d: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = 1e-3

    block_size: int = 32
    """Size of the blocks of R; where it does not divide a layer's inputs, the nearest size that does."""
    terms: int = 5
    """Terms of Neumann's series (at least 2) in place of the inverse, fast and nearly orthogonal; 0: the inverse itself."""
    dropout: float = 0.0
    """Probability with which a block is the identity in training."""
    target_modules: str | list[str] = "all-linear"
    """Layers that are adapted: `all-linear` (all but the output head), or ends of module names."""

    def __post_init__(self) -> None:
        check_whole("block_size", self.block_size, 2)
        check_whole("terms", self.terms, 0)
        if self.terms == 1:  # I alone, whatever Q is
            raise UsageError("Expected --method.terms to be 0 or at least 2, as with one term nothing turns; got 1.")
        check_share("dropout", self.dropout)
        check_targets(self.target_modules)

    def peft_config(self, model: nn.Module, total_steps: int) -> OFTConfig:
        """Peft's `OFTConfig`."""
        from peft import OFTConfig

        return OFTConfig(
            task_type="CAUSAL_LM",
            r=0,
            oft_block_size=self.block_size,
            module_dropout=self.dropout,
            use_cayley_neumann=self.terms > 0,
            num_cayley_neumann_terms=max(1, self.terms),
            target_modules=targets(self.target_modules),
        )


@dataclass(frozen=True)
class BOFT(Adapter):
    """Orthogonal fine-tuning with butterflies: a product of sparse rotations that together reach every input.

    y = s * (W R_m ... R_1 x), each R_i: (in_features, in_features) block-diagonal with orthogonal blocks of `block_size` after
    a permutation (Liu et al. 2023, arXiv:2311.06243, eq. 4), all the identity at the start; s: (out_features), 1 at the start,
    as peft has it. Merged: W' = diag(s) W R_m ... R_1.
    """

    name: ClassVar[str] = "boft"
    takes_conv1d: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = 1e-3

    block_size: int = 4
    """Size of the blocks; has to divide the width of every layer, together with 2 ** (factors - 1)."""
    factors: int = 1
    """Butterfly factors m; more than one needs a CUDA toolkit, with which peft builds their kernel."""
    dropout: float = 0.0
    """Probability with which a block is the identity in training."""
    target_modules: str | list[str] = "all-linear"
    """Layers that are adapted: `all-linear` (all but the output head), or ends of module names."""

    def __post_init__(self) -> None:
        check_whole("block_size", self.block_size, 2)
        check_whole("factors", self.factors)
        check_share("dropout", self.dropout)
        check_targets(self.target_modules)

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """As of any adapter.

        Raises:
            UsageError: also where there are to be several factors, and no kernel for them, or the blocks do not divide a layer.
        """
        from peft.tuners.boft.layer import get_fbd_cuda

        with quiet_peft():
            # peft would go on with one
            if self.factors > 1 and get_fbd_cuda() is None:  # type: ignore[no-untyped-call]  # of peft
                raise UsageError(
                    f"Expected --method.factors 1 on a machine without a CUDA toolkit, which more need; got {self.factors}."
                )
        if not has_conv1d(model):
            self._check_blocks(model)
        with _permutations_at_once():
            return super().attach(model, total_steps)

    def _check_blocks(self, model: nn.Module) -> None:
        """Refuse blocks that do not divide the inputs of every layer that is turned."""
        layers = adapted_layers(model, self.target_modules)
        widths = {int(cast("nn.Linear", layer).in_features) for _, layer in layers}
        pieces = 2 ** (self.factors - 1)
        if all(width % (self.block_size * pieces) == 0 for width in widths):
            return
        common = math.gcd(*widths) // pieces
        fitting = [str(size) for size in range(2, min(common, 64) + 1) if common % size == 0]
        beside = f" with {self.factors} factors" if pieces > 1 else ""
        raise UsageError(
            f"Expected --method.block_size to divide the inputs of every layer ({', '.join(map(str, sorted(widths)))}; "
            f"{', '.join(fitting) or 'none'} would{beside}); got {self.block_size}."
        )

    def peft_config(self, model: nn.Module, total_steps: int) -> BOFTConfig:
        """Peft's `BOFTConfig`."""
        from peft import BOFTConfig

        return BOFTConfig(
            task_type="CAUSAL_LM",
            boft_block_size=self.block_size,
            boft_n_butterfly_factor=self.factors,
            boft_dropout=self.dropout,
            target_modules=targets(self.target_modules),
        )


@contextlib.contextmanager
def _permutations_at_once() -> Iterator[None]:
    """Within the block peft's BOFT layers write their permutation matrices in one operation each.

    It sets the ones of each, of which there are as many as the layer has inputs, one by one: on wide layers that is most of the
    time of attaching.
    """
    from peft.tuners.boft.layer import BOFTLayer

    layer: Any = BOFTLayer
    before = layer.perm2mat
    layer.perm2mat = lambda _, indices: permutation_matrix(indices)
    try:
        yield
    finally:
        layer.perm2mat = before


def permutation_matrix(indices: Tensor) -> Tensor:
    """P of shape (n, n) with P[i, indices[i]] = 1 and 0 elsewhere."""
    import torch

    size = len(indices)
    return torch.zeros(size, size).scatter_(1, indices.view(-1, 1), 1.0)
