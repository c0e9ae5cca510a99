"""Linear layers of a quantised base as memory sees them: weights of few bits, written out anew for every product.

They stand for bitsandbytes' layers, which need real weights to quantise; what a product holds is as in its source (0.50,
`autograd/_functions.py`, `backends/default/ops.py`), but that no input is kept, which the loader of such bases sees to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_ft_plan.hollow import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.quantization import Format, Quantization
    from lightning_ft_plan.hollow import Hollow

BITS: Mapping[Format, float] = {"nf4": 4.5, "fp4": 4.5, "int8": 8.02}
"""Bits of a weight with its scale: blocks of 64 with a scale of 32 bits; int8 has a scale for each row."""
BITS_DOUBLE = 4.127
"""The same where the scales are quantised: of 8 bits, of which 256 share one of 32 (Dettmers et al. 2023, arXiv:2305.14314,
section 3)."""
QUANTISING: Mapping[Format, int] = {"nf4": 14, "fp4": 28, "int8": 10}
"""On a CPU: bytes for each number of a weight while it is quantised (copies in float32, levels as integers); measured."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quantise(layers: list[Any], stored: Quantization, hollow: Hollow) -> None:
    """Make plain linear layers, GPT-2's kind of them included, those of a quantised base, and count them as such.

    Only the class of a module changes, so that methods find it where it was; they take the way through it that they take where
    a base layer has a forward of its own.

    Args:
        layers: `nn.Linear` or `Conv1D`.
        stored: In how many bits, and what weights are turned into for a product.
        hollow: Counts.
    """
    bits = BITS_DOUBLE if stored.double_quant else BITS[stored.quantize]
    for layer in layers:
        if not isinstance(layer, nn.Linear):  # of shape (in_features, out_features)
            layer.in_features, layer.out_features = layer.weight.shape
            layer.weight = nn.Parameter(layer.weight.t())
        layer.__class__ = FewBits
        layer.compute = _DTYPES[stored.compute_dtype] if stored.compute_dtype else None
        hollow.assign(layer.weight, WEIGHTS, round(layer.weight.numel() * bits / 8))


class FewBits(nn.Linear):
    """`y = x W^T + c` with a weight that is written out for the product."""

    compute: torch.dtype | None
    """Of the product; None: the input's."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        bias = None if self.bias is None else self.bias.to(self.compute or x.dtype)
        y: Tensor = _Product.apply(x.to(self.compute or x.dtype), self.weight, bias)  # type: ignore[no-untyped-call]  # of torch
        return y.to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, weight.to(x.dtype, copy=True), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.weight.to(grad.dtype, copy=True), None, None
