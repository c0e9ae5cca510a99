"""8-bit layers that do not keep what goes into them.

bitsandbytes keeps the input of each product, with its outlying columns, for the gradient of weights that are frozen here. It
does so as attributes of the graph's nodes, which live until the end of the backward pass, and which recomputing activations
does not free either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitsandbytes.nn.modules import Linear8bitLt

if TYPE_CHECKING:
    from torch import Tensor, nn


def forget_inputs(model: nn.Module) -> None:
    """Let all 8-bit layers of a frozen model be such; only their class changes."""
    for module in model.modules():
        if type(module) is Linear8bitLt:
            module.__class__ = ForgetfulLinear8bit


class ForgetfulLinear8bit(Linear8bitLt):
    """The layer of bitsandbytes, whose backward pass for a frozen weight reads nothing but that weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        out: Tensor = super().forward(x)
        node: Any = out.grad_fn
        if node is not None and x.numel():  # it answers an empty input with zeros of its shape
            if hasattr(node, "A"):  # the product of a CPU in training
                node.A = None
            if hasattr(node, "tensors"):  # that of a GPU, and of a CPU in evaluation
                node.tensors = (None, None, None)
        return out
