"""Lion: steps of one size, whose signs come from gradient and momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lightning_ft_optimizers.parts import expect_common

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Sign of an interpolation between gradient and momentum; one number per weight is kept.

    Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2. For a parameter W of any
    shape with gradient G and momentum M of that shape and dtype, betas (b1, b2):

        C  = b1 M + (1 - b1) G
        W <- W - lr (sign(C) + weight_decay W)
        M <- b2 M + (1 - b2) G

    Every weight moves by lr, so that the learning rate is a third to a tenth of AdamW's, and the weight decay, which lr
    multiplies, three to ten times as large (section 5 of the paper).

    Args:
        params: Parameters or groups of them.
        lr: Learning rate: what a weight moves in a step.
        betas: Share of the momentum in the step's sign, and share of the old momentum in the new one, each in [0, 1);
            the paper takes 0.95 0.98 for language models, which forgets sooner and is more stable.
        weight_decay: For groups that do not say their own.

    Raises:
        ValueError: a value is out of its range.
    """

    elementwise: ClassVar[bool] = True
    """A part of a matrix can be updated by itself, as under FSDP2."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        expect_common(lr, betas, weight_decay)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]  # torch types it as float
        """One update of all parameters that have a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                momentum = state["exp_avg"]
                # One by one: torch's foreach kernels would hold the signs of all weights at once, as much as the momentum.
                sign = momentum.lerp(p.grad, 1 - beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(sign, alpha=group["lr"])
                momentum.lerp_(p.grad, 1 - beta2)
        return loss
