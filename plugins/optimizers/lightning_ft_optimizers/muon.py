"""Muon for the matrices inside the network, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum of each matrix, made orthogonal; torch's own Muon and AdamW do the arithmetic.

    For a matrix W (m, n) with gradient G, momentum B and Nesterov's look-ahead (Jordan et al. 2024, "Muon: An optimizer for
    hidden layers in neural networks"), scaled to the size of an AdamW update (Liu et al. 2025, "Muon is Scalable for LLM
    Training", eq. 4), so that AdamW's learning rate and weight decay serve both:

        B <- momentum B + (1 - momentum) G
        O  = NewtonSchulz((1 - momentum) G + momentum B)
        W <- (1 - lr weight_decay) W - 0.2 sqrt(max(m, n)) lr O

    Embeddings and the output layer (groups with `embedding: True`) and whatever is no matrix are AdamW's.

    Args:
        params: Parameter groups.
        lr: Learning rate of all groups.
        momentum: Share of the old momentum, in [0, 1).
        nesterov: Whether to look one step ahead.
        ns_steps: Newton-Schulz iterations.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: For groups that do not say their own.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95, nesterov: bool = True, ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.1,
    ) -> None:  # fmt: skip
        if not 0 <= momentum < 1:
            raise ValueError(f"expected momentum in [0, 1), got {momentum}")
        if not 1 <= ns_steps < 100:
            raise ValueError(f"expected ns_steps from 1 to 99, got {ns_steps}")
        matrices, others = _divided(params, weight_decay)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices, lr=lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn="match_rms_adamw"
                )
            )
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True))
        self._sizes = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimiser's groups and state, so that a schedule, a checkpoint and a resume see only one."""
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups, part.state = self.param_groups[first : first + size], self.state
            first += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]  # torch types it as float
        """One update of all parameters that have a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def _divided(params: Iterable[Any], weight_decay: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of hidden matrices, and the groups of everything else."""
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    matrices, others = [], []
    for group in groups:
        own = list(group["params"])
        inner = [p for p in own if p.ndim == 2 and not group.get("embedding")]
        rest = [p for p in own if p.ndim != 2 or group.get("embedding")]
        options = {"weight_decay": weight_decay, **group}
        matrices += [{**options, "params": inner}] if inner else []
        others += [{**options, "params": rest}] if rest else []
    return matrices, others
