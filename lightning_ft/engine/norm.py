"""RMSNorm of a decoder as one function: eight passes over the hidden states less, and nothing wide is kept.

Autograd keeps each of the intermediate results of transformers' own norm, in float32. Here the backward pass has its
input, the weight and one number per row. On a GPU it is torch's own kernel, on a CPU in bfloat16 ours (`native_kernels`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_ft.engine import kernels
from lightning_ft.engine.model import with_forward

if TYPE_CHECKING:
    from collections.abc import Iterator


_SHORT: set[type[nn.Module]] = set()


def fuse_norms(model: nn.Module) -> int:
    """Let the norms of a model take the short way, and return how many do.

    The class of a module is changed, not the module, so that names, weights and saving stay what they were. A class whose
    norm is not `w x / sqrt(mean(x^2) + eps)` (of Gemma, say, which adds 1 to w) is seen by its output and left alone.
    """
    fused = 0
    for module in list(_norms(model)):
        cls: Any = type(module)
        short = cls if cls in _SHORT else _short(cls)
        if short is not None:
            module.__class__ = short
            fused += 1
    return fused


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`w x / sqrt(mean(x^2) + eps)` over the last dimension, computed in float32 and rounded before the weight.

    Args:
        x: (..., D).
        weight: (D,).
        eps: added to the mean square (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4, has none).
    """
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]  # of torch
    return out


class _RMSNorm(torch.autograd.Function):
    """With r = (mean(x^2) + eps)^-1/2, n = r x and h = G w: dL/dx = r (h - n mean(h n)), dL/dw = sum over rows of G n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """(..., D) in the type that weight and x have together."""
        ours = kernels.on_cpu(x, weight)
        if ours is not None and x.is_contiguous():
            out, scale = ours.norm(x, weight, eps)
            ctx.save_for_backward(x, weight, scale)
            return out
        wide = x.to(_wide(x.dtype))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the weight."""
        x, weight, scale = ctx.saved_tensors
        ours = kernels.on_cpu(grad, x, weight)
        if ours is not None and x.is_contiguous() and ctx.needs_input_grad[0]:
            d_x, d_weight = ours.norm_backward(grad.contiguous(), x, weight, scale, trains=ctx.needs_input_grad[1])
            return d_x, None if d_weight is None else d_weight.to(weight.dtype), None
        normed = x.to(scale.dtype) * scale
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * normed.to(x.dtype)).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        inner = (grad * weight).to(scale.dtype)
        mean = torch.linalg.vecdot(inner, normed)[..., None] / x.shape[-1]
        return inner.sub_(normed.mul_(mean)).mul_(scale).to(x.dtype), d_weight, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _norms(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that look like an RMSNorm: one vector of weights, and an epsilon."""
    for module in model.modules():
        names = [name for name, _ in module.named_parameters()]
        if type(module).__name__.endswith("RMSNorm") and names == ["weight"] and isinstance(_eps(module), float):
            yield module


def _eps(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)


@functools.cache
def _short(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class with the short way; None where it would be another function."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = type(self.weight.data) is Tensor and not args and not kwargs  # not sharded over ranks
        if plain and hidden_states.device.type == "cpu" and hidden_states.dtype != torch.float64:  # theirs takes 32 bits
            return rms_norm(hidden_states, self.weight, _eps(self))
        if plain and hidden_states.is_cuda and hidden_states.dtype == self.weight.dtype != torch.float64:
            with torch.autocast("cuda", enabled=False):  # the kernel is wide inside; autocast would widen what goes in and out
                return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, _eps(self))
        out: Tensor = cls.forward(self, hidden_states, *args, **kwargs)
        return out

    short = with_forward(cls, forward)
    if not _agrees(cls):
        return None
    _SHORT.add(short)
    return short


def _agrees(cls: type[nn.Module]) -> bool:
    """Whether a norm of this class gives what `rms_norm` gives, for weights and inputs of both widths."""
    draw = torch.Generator().manual_seed(0)
    for x_type, w_type in ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)):
        x = torch.randn(2, 3, 16, generator=draw).to(x_type)
        try:
            module: Any = cls(16, eps=1e-3)
            module.weight.data = torch.randn(16, generator=draw).to(w_type)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                theirs, ours = module(x), rms_norm(x, module.weight, 1e-3)
        except Exception:  # a norm with other arguments is another function
            return False
        # A kernel of ours sums in another order, which may round to the other neighbour in bfloat16.
        allowed = 2**-7 if w_type == x_type == torch.bfloat16 else 0.0
        if theirs.dtype != ours.dtype or not torch.allclose(theirs, ours, rtol=allowed, atol=0.0):
            return False
    return True
