"""The adapted layer as one function: no float32 copy of the input, no product that is made only to be added.

peft casts a layer's bfloat16 input to the adapter's float32, keeps that copy for the backward pass, makes both thin products
in float32, scales, adds, and casts the sum back. Here the thin products are made in the type of the base layer, as
autocast makes them, and added in place to the base layer's output. The adapter itself stays float32.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_ft.engine import kernels
from lightning_ft.engine.model import with_forward
from lightning_ft.quantization import is_quantized

if TYPE_CHECKING:
    from torch.nn.modules.module import Module

_ROWS, _SMALL = 32, 1 << 22
"""Fewer rows by a larger weight, as in generation, take the time in which the weight is read; our product copies it first."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fuse(model: nn.Module) -> None:
    """Let every LoRA layer of a peft model take a short way wherever that is the same function.

    The class of the module is changed, not the module: names, parameters, merging and saving stay peft's.
    """
    kinds: set[type[nn.Module]] = {PeftLinear}
    # A plan has models that only say that they are quantised, also where the library is not installed.
    if is_quantized(model) and importlib.util.find_spec("bitsandbytes"):
        from peft.tuners.lora import bnb  # it imports bitsandbytes

        kinds |= {bnb.Linear4bit, bnb.Linear8bitLt}
    for module in model.modules():
        cls: Any = type(module)
        if cls in kinds:
            module.__class__ = _short(cls)


@functools.cache
def _short(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of peft's with the short ways through its forward."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        adapters = None if args or kwargs else _adapters(self)
        if adapters is None:
            out: Tensor = cls.forward(self, x, *args, **kwargs)
            return out
        base, device = self.base_layer, x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        flat = x.to(dtype).reshape(-1, x.shape[-1])
        if len(adapters) == 1 and not adapters[0].dropout and _is_plain(base) and (autocast or dtype == base.weight.dtype):
            bias = None if base.bias is None else base.bias.to(dtype)
            with torch.autocast(device, enabled=False):
                y = _Adapted.apply(flat, base.weight.to(dtype), bias, *adapters[0].weights(dtype))  # type: ignore[no-untyped-call]  # of torch
        else:
            y = base(flat).to(dtype)
            with torch.autocast(device, enabled=False):
                for adapter in adapters:
                    y = _Beside.apply(y, flat, *adapter.weights(dtype), adapter.dropout)  # type: ignore[no-untyped-call]  # of torch
        return y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]  # of torch

    return with_forward(cls, forward)


class _Adapter(NamedTuple):
    """What one adapter adds to a layer's output, `s B A drop(x)`."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float
    """Probability with which its input is zeroed, now."""

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A: (rank, in) and s B: (out, rank), cast where autograd casts their gradients back to float32."""
        return self.a.to(dtype), (self.b * self.scale).to(dtype)


def _adapters(layer: Any) -> list[_Adapter] | None:
    """What is added to the output of the base layer, if that is all that decides the output; None where peft knows better."""
    base = layer.base_layer
    if layer.disable_adapters or layer.merged or layer.lora_variant or not isinstance(base, nn.Linear) or not _is_bare(base):
        return None
    if any(p.requires_grad for p in base.parameters()):
        return None
    found = []
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        a, b, drop = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        if b.bias is not None or not (_is_plain(a) and _is_plain(b)):
            return None
        dropout = getattr(drop, "p", 0.0) if drop.training else 0.0
        found.append(_Adapter(a.weight, b.weight, float(layer.scaling[name]), dropout))
    return found or None


def _is_bare(layer: Any) -> bool:
    """Whether a layer is called as its class has it: not observed, not sharded over ranks."""
    if type(layer.weight.data) is not Tensor or "forward" in vars(layer):
        return False
    return not any(getattr(layer, name) for name in _HOOKS)


def _is_plain(layer: Module) -> bool:
    """Whether a layer is nn.Linear and nothing else: not quantised either."""
    return type(layer) is nn.Linear and _is_bare(layer)


class _Adapted(torch.autograd.Function):
    """`y = x W^T + c + (x A^T) B'^T` with `B' = s B`; W and c are frozen.

    With G = dL/dy: dL/dx = G W + (G B') A, dL/dA = (G B')^T x, dL/dB' = G^T (x A^T).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        """x: (N, in), weight: (out, in), bias: (out,), a: (rank, in), b: (out, rank); all of one type."""
        ours = kernels.matrix(x, weight, a, b) if len(x) >= _ROWS or weight.numel() <= _SMALL else None
        if ours is not None:
            y, thin = ours.adapted(x, weight, a, b, across=True)
            if bias is not None:
                y.add_(bias)
        else:
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
        ours = kernels.matrix(grad, x, weight, a, b)
        if ours is not None:
            if ctx.needs_input_grad[0]:
                dx, back = ours.adapted(grad, weight, b, a)
            else:
                dx, back = None, ours.product(grad, b)
            return dx, None, None, ours.product(back.t().contiguous(), x), ours.product(thin.t().contiguous(), grad).t()
        back, dx = grad @ b, None
        if ctx.needs_input_grad[0]:
            dx = _added(back, a, grad, weight)
        return dx, None, None, back.t() @ x, (thin.t() @ grad).t()  # grad.t() @ thin takes half as long again


class _Beside(torch.autograd.Function):
    """`y + (drop(x) A^T) B'^T` with `B' = s B`, in place on what a base layer of any kind made of x.

    With G = dL/dy: dL/dx = drop'((G B') A), dL/dA = (G B')^T drop(x), dL/dB' = G^T (drop(x) A^T). What G gives to x through the
    base layer is that layer's own affair: a quantised one writes its weight out once more and needs no x.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, dropout: float) -> Tensor:
        """y: (N, out), x: (N, in), a: (rank, in), b: (out, rank); all of one type."""
        # The input itself, which others keep too, and a byte for each of its numbers instead of what dropout left of it.
        dropped, kept = torch.native_dropout(x, dropout, True) if dropout else (x, None)
        thin = dropped @ a.t()
        _, _, trains_a, trains_b, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if trains_a else None, kept, a, b, thin if trains_b else None)
        ctx.dropout = dropout
        ctx.mark_dirty(y)
        return y.addmm_(thin, b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, x, A and B'."""
        x, kept, a, b, thin = ctx.saved_tensors
        back, dx, da, db = grad @ b, None, None, None

        def drop(t: Tensor) -> Tensor:
            return t if kept is None else torch.ops.aten.native_dropout_backward(t, kept, 1 / (1 - ctx.dropout))

        if ctx.needs_input_grad[1]:
            dx = drop(back @ a)
        if x is not None:
            da = back.t() @ drop(x)
        if thin is not None:
            db = (thin.t() @ grad).t()  # as in `_Adapted`
        return grad, dx, da, db, None


def _added(thin: Tensor, narrow: Tensor, wide: Tensor, large: Tensor) -> Tensor:
    """`thin narrow + wide large`, the second in place on what the first made.

    On a GPU the large product comes second: it reads what it is added to while it computes, where a product of `rank` columns
    does nothing but read and write. oneDNN, on a CPU, is slower at adding large products than thin ones.
    """
    if wide.is_cuda:
        return (thin @ narrow).addmm_(wide, large)
    return (wide @ large).addmm_(thin, narrow)
