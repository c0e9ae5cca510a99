"""Float32 weights of which the model holds the upper 16 bits, and the optimiser the lower.

A model in bfloat16 takes half the memory and needs no casts in the forward pass, but updates below a 256th of a weight are
rounded away. Here the 16 bits that are missing to float32 lie beside, so that every update is one of the float32 weight,
while no number is kept twice: 2 bytes in the model, 2 in the optimiser (the split of Kalamkar et al. 2019, arXiv:1905.12322,
there for SGD; here the upper half is rounded, not cut off).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

AT_ONCE = 2**22
"""Numbers of which float32 copies exist at a time, or those of one parameter."""


def joined(upper: Tensor, lower: Tensor) -> Tensor:
    """The float32 numbers of which `split` made the two halves.

    Args:
        upper: bfloat16.
        lower: int16, of the same shape.
    """
    return upper.view(torch.int16).to(torch.int32).bitwise_left_shift_(16).add_(lower).view(torch.float32)


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 number nearest to each float32 number (of two, the one further from 0), and what is missing, as int16."""
    bits = weight.view(torch.int32)
    upper = (bits + 0x8000).bitwise_right_shift_(16)
    lower = bits.sub(upper.bitwise_left_shift(16)).to(torch.int16)
    return upper.to(torch.int16).view(torch.bfloat16), lower


class MasterWeights(torch.optim.Optimizer):
    """Lets an optimiser of float32 weights train bfloat16 parameters without rounding its updates away.

    Parameters of other types are trained as they are. `state` is the inner optimiser's, `lower` the halves that the model
    does not hold.

    Args:
        inner: Makes the optimiser from parameter groups; its update of a parameter must not depend on other parameters.
        groups: Parameter groups.
    """

    def __init__(self, inner: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], groups: list[dict[str, Any]]) -> None:
        self._wide = {p: nn.Parameter(_shape_of(p)) for g in groups for p in _narrow(g)}
        """Stands for a parameter in the inner optimiser, and is filled for the length of its update."""
        self.inner = inner([group | {"params": [self._wide.get(p, p) for p in group["params"]]} for group in groups])
        self.lower: dict[Tensor, Tensor] = {}
        own = {wide: p for p, wide in self._wide.items()}
        # The inner optimiser's groups, which may be others than it was given: matrices and the rest, for example.
        super().__init__([g | {"params": [own.get(p, p) for p in g["params"]]} for g in self.inner.param_groups], {})

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether the inner optimiser reads `found_inf` on a GPU."""
        return bool(getattr(self.inner, "_step_supports_amp_scaling", False))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for own, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({k: v for k, v in own.items() if k != "params"})
        self.inner.found_inf = getattr(self, "found_inf", None)  # type: ignore[attr-defined]  # read by fused steps
        plain = [p for group in self.param_groups for p in group["params"] if p not in self._wide and p.grad is not None]
        grads = [p.grad for p in plain]
        for p in plain:
            p.grad = None  # the inner optimiser updates whatever has one
        for bucket in self._buckets():
            self._update(bucket)
        for p, grad in zip(plain, grads, strict=True):
            p.grad = grad
        if plain:
            self._inner_step(plain)
        return loss

    def _buckets(self) -> Iterator[list[Tensor]]:
        """The bfloat16 parameters with a gradient, so many at a time."""
        bucket: list[Tensor] = []
        for p in self._wide:
            if p.grad is None:
                continue
            if bucket and sum(map(Tensor.numel, bucket)) + p.numel() > AT_ONCE:
                yield bucket
                bucket = []
            bucket.append(p)
        if bucket:
            yield bucket

    def _update(self, bucket: Sequence[Tensor]) -> None:
        for p in bucket:
            lower, wide = self.lower.get(p), self._wide[p]
            wide.data = p.detach().float() if lower is None else joined(p.detach(), lower)
            wide.grad = None if p.grad is None else p.grad.float()
        self._inner_step(bucket)
        for p in bucket:
            wide = self._wide[p]
            upper, self.lower[p] = split(wide.data)
            p.detach().copy_(upper)
            wide.data, wide.grad = _shape_of(p), None

    def _inner_step(self, params: Sequence[Tensor]) -> None:
        for p in params:
            if p in self.state:
                self.inner.state[self._wide.get(p, p)] = self.state[p]
        self.inner.step()
        for p in params:
            self.state[p] = self.inner.state.pop(self._wide.get(p, p), {})

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with `lower`: the lower halves by the parameter's number."""
        numbers = {p: n for n, p in enumerate(p for group in self.param_groups for p in group["params"])}
        return super().state_dict() | {"lower": {numbers[p]: half for p, half in self.lower.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned; torch's own would round float32 states to the type of the parameters."""
        params = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for number, values in state_dict["state"].items():
            own = params[number]
            on = {k: v.to(own.device) if isinstance(v, Tensor) and k != "step" else v for k, v in values.items()}
            self.state[own] = on | ({"step": _counter(values["step"], own)} if "step" in values else {})
        self.lower = {params[number]: half.to(params[number].device) for number, half in state_dict["lower"].items()}
        for own, group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            own.update({k: v for k, v in group.items() if k != "params"})


def _narrow(group: Mapping[str, Any]) -> Iterator[Tensor]:
    return (p for p in group["params"] if p.dtype == torch.bfloat16)


def _shape_of(p: Tensor) -> Tensor:
    """A float32 tensor of the same shape and device that takes no memory: optimisers choose by the shape what they do."""
    return p.detach().new_empty((), dtype=torch.float32).expand(p.shape)


def _counter(step: Any, p: Tensor) -> Any:
    """Fused optimisers on a GPU count there, all others on the CPU."""
    return step.to(p.device) if isinstance(step, Tensor) and p.is_cuda else step
