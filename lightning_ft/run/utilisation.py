"""Model FLOPs utilisation: the products that a step needs, against what this machine multiplies in the same time.

Of a matrix with n numbers a token takes 2n operations in the forward pass, 2n for the gradient of its input, and 2n for its
own where it trains (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Counted is what is needed: no padding, no activations
that are made twice, no attention, and the output layer at supervised positions only. The rate is that of the model's own
matrices, measured when training begins.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_ft.engine.head import head_linear, head_module

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES, ROWS, SECONDS = 4, 2048, 0.02
"""Most different matrices that are measured, most rows of their products, and about how long each."""


@dataclass(frozen=True)
class Work:
    """Operations of one token in forward and backward pass, all processes together."""

    everywhere: float
    """In the layers, at every position."""
    supervised: float
    """In the output layer, at positions that are trained on."""

    @classmethod
    def of(cls, model: nn.Module) -> Work:
        """Of a model with its method attached."""
        layer = head_module(model)
        head = None if layer is None else head_linear(layer)
        everywhere = supervised = 0.0
        for module, rows, columns in _matrices(model):
            weight: Any = module.weight
            work = rows * columns * (6.0 if weight.requires_grad else 4.0)
            if module is head:
                supervised += work
            else:
                everywhere += work
        return cls(everywhere, supervised)

    def __call__(self, tokens: float, supervised: float) -> float:
        """Operations of so many tokens, of which so many are supervised."""
        return self.everywhere * tokens + self.supervised * supervised


def _matrices(model: nn.Module) -> Iterator[tuple[nn.Module, int, int]]:
    """The layers that multiply, with the sizes of their whole matrices, in few bits or in parts as they may be."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module, module.out_features, module.in_features
        elif isinstance(module, Conv1D):
            yield module, module.nf, module.nx


def product_rate(model: nn.Module, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of this process in products with the largest matrices of the model's layers.

    Args:
        model: Whose matrices.
        tokens: Rows of a product, as in a micro-batch; at most `ROWS` are taken.
        dtype: In which the model multiplies.
        device: On which.
    """
    head = head_module(model)
    found = {(rows, columns): module for module, rows, columns in _matrices(model) if module is not head}
    work = seconds = 0.0
    for rows, columns in sorted(found, key=lambda size: -size[0] * size[1])[:SHAPES]:
        x = torch.ones(min(tokens, ROWS), columns, dtype=dtype, device=device)
        layer: Any = found[rows, columns]
        w = layer.weight.detach()
        if type(w) is not torch.Tensor or w.shape != (rows, columns) or w.dtype != dtype:
            w = torch.ones(rows, columns, dtype=dtype, device=device)  # it is in few bits or in parts, or cast for products
        x @ w.t()  # the first one compiles
        best, end = float("inf"), time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            _wait(device)
            begin = time.perf_counter()
            x @ w.t()
            _wait(device)
            best = min(best, time.perf_counter() - begin)
        work += 2.0 * x.shape[0] * rows * columns
        seconds += best
    return work / seconds if seconds else 0.0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
