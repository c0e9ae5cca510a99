"""Muon for the matrices inside the network, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lightning_ft_optimizers.parts import Parts, adamw, divided, expect

if TYPE_CHECKING:
    from collections.abc import Iterable


class Muon(Parts):
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
        expect(0 <= momentum < 1, "momentum in [0, 1)", momentum)
        expect(1 <= ns_steps < 100, "ns_steps from 1 to 99", ns_steps)
        matrices, others = divided(params, weight_decay)
        parts: list[torch.optim.Optimizer] = adamw(others, lr, betas, eps)
        if matrices:
            parts.insert(
                0,
                torch.optim.Muon(
                    matrices, lr=lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn="match_rms_adamw"
                ),
            )
        super().__init__(parts)
