"""Spectrum: full training of the matrices that stand out most from noise, layer by layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft.method import Method
from lightning_ft_methods.freeze import layers_for

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Spectrum(Method):
    """Train the weight matrices of the decoder layers with the highest signal-to-noise ratio, and nothing else.

    By Hartford et al. 2024 (arXiv:2406.06623): of the singular values s_1 >= s_2 >= ... of a matrix of shape (n, m), n <= m,
    those above the edge of Marchenko and Pastur's law for random matrices, e = sigma (1 + sqrt(n / m)), are signal and the
    others noise. sigma is estimated by the values' interquartile range / 1.349, and

        snr = (sum of s_i > e) / (sum of s_i <= e) / s_1

    Matrices are compared with those of the same name in other layers (all q_proj, all up_proj ...): the first `share` of
    each kind trains.
    """

    name: ClassVar[str] = "spectrum"
    trains_base: ClassVar[bool] = True
    can_shard: ClassVar[bool] = True

    share: float = 0.25
    """Share of the matrices of each kind that train, at least one of them; above 0, at most 1."""

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0 < self.share <= 1:
            raise UsageError(f"Expected --method.share to be above 0 and at most 1; got {self.share}.")

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model itself, with gradients for the chosen matrices.

        Raises:
            UsageError: the model has no list of decoder layers with matrices.
        """
        from lightning_ft.optim import is_bias

        model.requires_grad_(False)
        kinds: dict[str, list[nn.Parameter]] = {}
        for layer in layers_for(model, self.name):
            for name, parameter in layer.named_parameters():
                if is_bias(name):
                    continue
                if parameter.ndim == 2 or (parameter.ndim == 3 and min(parameter.shape) > 1):  # experts in one
                    kinds.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(parameter)
        for matrices in kinds.values():
            count = max(1, round(self.share * len(matrices)))
            ranked = sorted(matrices, key=lambda matrix: signal_to_noise(matrix.detach()), reverse=True)
            for matrix in ranked[:count]:
                matrix.requires_grad_(True)
        return model


def signal_to_noise(matrix: Tensor) -> float:
    """The ratio of `Spectrum` for a matrix (n, m) or (m, n), of several (k, n, m) the mean; infinite where nothing is noise."""
    import torch

    # (..., k), in descending order; of experts one by one, or all would be copied to float32 at once
    values = torch.stack([torch.linalg.svdvals(one.float()) for one in matrix.reshape(-1, *matrix.shape[-2:])])
    lower, upper = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device), dim=-1)
    short, long = sorted(matrix.shape[-2:])
    edge = (upper - lower) / 1.349 * (1 + (short / long) ** 0.5)
    is_signal = values > edge[..., None]
    signal, noise = (torch.where(kept, values, 0.0).sum(-1) for kept in (is_signal, ~is_signal))
    return float((signal / noise / values[..., 0]).nan_to_num(posinf=float("inf")).mean())
