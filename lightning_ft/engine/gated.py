"""The gated unit of a decoder's MLP, `silu(x G) * (x U)`, and its rotary positions: one kernel each, where there are any.

Eager PyTorch reads and writes such vectors three to eight times and keeps what is between for the backward pass. A module's
class is changed, not the module, as in `norm`; wherever an input does not fit the kernel, their own code runs.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_ft.engine import kernels
from lightning_ft.engine.model import with_forward

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_ft.engine.kernels import Kernels

_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
_ROTATION = "apply_rotary_pos_emb"
"""What the model files of transformers call the function that their attention layers look up by name."""
_SHORT: set[type[nn.Module]] = set()


def fuse_gates(model: nn.Module) -> int:
    """Let the MLPs that compute `down(silu(gate(x)) * up(x))` make the middle in one kernel, and return how many do."""
    fused = 0
    for module in list(model.modules()):
        cls: Any = type(module)
        if not all(hasattr(module, part) for part in _PARTS) or not _is_silu(module.act_fn):
            continue
        short = cls if cls in _SHORT else _short(cls)
        if short is not None:
            module.__class__ = short
            fused += 1
    return fused


def fuse_rotations(model: nn.Module) -> int:
    """Let the attention layers rotate queries and keys in one kernel each, and return how many model files do.

    Transformers has no other seam for it than the name that a model's file gives the function.
    """
    files = {sys.modules[type(module).__module__] for module in model.modules() if type(module).__module__ in sys.modules}
    fused = 0
    for file in files:
        theirs = vars(file).get(_ROTATION)
        if callable(theirs) and not hasattr(theirs, "rotates_in_one_kernel") and _rotates_halves(theirs):
            setattr(file, _ROTATION, _rotation(theirs))
        fused += hasattr(vars(file).get(_ROTATION), "rotates_in_one_kernel")
    return fused


def _is_silu(function: Any) -> bool:
    return isinstance(function, nn.SiLU) or type(function).__name__ == "SiLUActivation"


@functools.cache
def _short(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class whose forward has the kernel; None where it would be another function."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:
            out: Tensor = cls.forward(self, x, *args, **kwargs)
            return out
        gate, up = self.gate_proj(x), self.up_proj(x)
        ours, fits = kernels.of(gate), gate.dtype == up.dtype and gate.is_contiguous() and up.is_contiguous()
        middle = _Gated.apply(gate, up, ours) if ours and fits else self.act_fn(gate) * up  # type: ignore[no-untyped-call]  # of torch
        return self.down_proj(middle)  # type: ignore[no-any-return]  # of a module

    if not _is_gated(cls):
        return None
    short = with_forward(cls, forward)
    _SHORT.add(short)
    return short


def _is_gated(cls: type[nn.Module]) -> bool:
    """Whether a class with these parts is that function of them."""
    draw = torch.Generator().manual_seed(0)
    module: Any = cls.__new__(cls)
    nn.Module.__init__(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        gate, up, down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        module.gate_proj, module.up_proj, module.down_proj, module.act_fn = gate, up, down, nn.SiLU()
        x = torch.randn(2, 3, 8, generator=draw)
        try:
            theirs = cls.forward(module, x)
        except Exception:  # it has further parts, so it is another function
            return False
        return isinstance(theirs, Tensor) and torch.equal(theirs, down(nn.functional.silu(gate(x)) * up(x)))


class _Gated(torch.autograd.Function):
    """`y = silu(g) u`: with s = sigmoid(g) and G = dL/dy, dL/dg = G u s (1 + g (1 - s)) and dL/du = G g s."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, ours: Kernels) -> Tensor:
        """Both of one shape and contiguous."""
        ctx.save_for_backward(gate, up)
        ctx.ours = ours
        return ours.gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return *ctx.ours.gated_backward(grad.contiguous(), gate, up), None


def _rotates_halves(theirs: Callable[..., Any]) -> bool:
    """Whether it is `x cos + (-x2, x1) sin` of queries and keys, for any cos and sin."""
    draw = torch.Generator().manual_seed(0)
    q, k, cos, sin = (torch.randn(s, generator=draw) for s in ((2, 4, 3, 8), (2, 2, 3, 8), (2, 3, 8), (2, 3, 8)))
    try:
        found = theirs(q, k, cos, sin)
        return all(torch.equal(a, _rotated_plainly(b, cos, sin)) for a, b in zip(found, (q, k), strict=True))
    except Exception:  # other arguments, other function
        return False


def _rotated_plainly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-two, one), -1) * sin[:, None]


def _rotation(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        ours = kernels.of(q)
        if args or kwargs or ours is None or not all(_rotation_fits(x, cos, sin) for x in (q, k)):
            return theirs(q, k, cos, sin, *args, **kwargs)
        return tuple(_Rotated.apply(x, cos, sin, ours) for x in (q, k))  # type: ignore[no-untyped-call]  # of torch

    rotate.rotates_in_one_kernel = True  # type: ignore[attr-defined]  # a mark on a function
    return rotate


def _rotation_fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return (
        x.ndim == 4
        and cos.shape == sin.shape == (cos.shape[0], x.shape[2], x.shape[3])
        and cos.shape[0] in (1, x.shape[0])
        and x.shape[3] % 2 == 0
        and x.stride(3) == 1
        and (x.is_cuda or cos.dtype == sin.dtype == x.dtype)
        and cos.is_contiguous()
        and sin.is_contiguous()
        and not cos.requires_grad
    )


class _Rotated(torch.autograd.Function):
    """The rotation of all heads; its gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, ours: Kernels) -> Tensor:
        """x: (B, H, T, D); cos and sin: (B or 1, T, D)."""
        ctx.save_for_backward(cos, sin)
        ctx.ours = ours
        return ours.rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x."""
        cos, sin = ctx.saved_tensors
        grad = grad if grad.stride(3) == 1 else grad.contiguous()
        return ctx.ours.rotated(grad, cos, sin, back=True), None, None, None
