"""The adapted layer as one function: no float32 copy of the input, no product that is made only to be added.

peft casts a layer's bfloat16 input to the adapter's float32, keeps that copy for the backward pass, makes both thin products
in float32, scales, adds, and casts the sum back. Here the thin products are made in the type of the base layer, as
autocast makes them, and added in place to the base layer's output. The adapter itself stays float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch.nn.modules.module import Module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fuse(model: nn.Module) -> None:
    """Let every plain LoRA layer of a peft model take the short way wherever that is the same function.

    The class of the module is changed, not the module: names, parameters, merging and saving stay peft's.
    """
    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = FusedLinear


class FusedLinear(PeftLinear):
    """peft's LoRA layer, with `y = W x + c + s B A x` in one autograd function."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        weights = None if args or kwargs else self._one_adapter(x)
        if weights is None:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        base, a, b, scale = weights
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.weight.dtype
        bias = None if base.bias is None else base.bias.to(dtype)
        with torch.autocast(device, enabled=False):
            # Outside the function, so that autograd casts the gradients of A and B back to float32.
            flat = _Adapted.apply(  # type: ignore[no-untyped-call]  # of torch
                x.to(dtype).reshape(-1, x.shape[-1]), base.weight.to(dtype), bias, a.to(dtype), (b * scale).to(dtype)
            )
        return flat.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]  # of torch

    def _one_adapter(self, x: Tensor) -> tuple[nn.Linear, Tensor, Tensor, float] | None:
        """Base layer, A, B and s where they alone decide the output; None where peft knows better."""
        base, active = self.base_layer, self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return None
        name = active[0]
        drops = self.training and getattr(self.lora_dropout[name], "p", 0) > 0
        a, b = self.lora_A[name], self.lora_B[name]
        if drops or self.lora_variant or b.bias is not None or not all(map(_is_plain, (base, a, b))):
            return None
        same = x.dtype == base.weight.dtype or torch.is_autocast_enabled(x.device.type)
        trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        return (base, a.weight, b.weight, float(self.scaling[name])) if same and not trained else None


def _is_plain(layer: Module) -> bool:
    """Whether a layer is nn.Linear and nothing else: not quantised, not observed, not sharded over ranks."""
    if type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor:
        return False
    return "forward" not in vars(layer) and not any(getattr(layer, name) for name in _HOOKS)


class _Adapted(torch.autograd.Function):
    """`y = x W^T + c + (x A^T) B'^T` with `B' = s B`; W and c are frozen.

    With G = dL/dy: dL/dx = G W + (G B') A, dL/dA = (G B')^T x, dL/dB' = G^T (x A^T).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        """x: (N, in), weight: (out, in), bias: (out,), a: (rank, in), b: (out, rank); all of one type."""
        thin = x @ a.t()
        if bias is None:
            y = _added(thin, b.t(), x, weight.t())
        else:
            y = torch.nn.functional.linear(x, weight, bias).addmm_(thin, b.t())
        ctx.save_for_backward(x, weight, a, b, thin)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B'."""
        x, weight, a, b, thin = ctx.saved_tensors
        back = grad @ b
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _added(back, a, grad, weight)
        return dx, None, None, back.t() @ x, (thin.t() @ grad).t()  # grad.t() @ thin takes half as long again


def _added(thin: Tensor, narrow: Tensor, wide: Tensor, large: Tensor) -> Tensor:
    """`thin narrow + wide large`, the second in place on what the first made.

    On a GPU the large product comes second: it reads what it is added to while it computes, where a product of `rank` columns
    does nothing but read and write. oneDNN, on a CPU, is slower at adding large products than thin ones.
    """
    if wide.is_cuda:
        return (thin @ narrow).addmm_(wide, large)
    return (wide @ large).addmm_(thin, narrow)
