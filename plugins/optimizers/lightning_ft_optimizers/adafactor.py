"""Adafactor: torch's, with a regularisation constant that suits the gradients of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lightning_ft_optimizers.parts import expect, expect_whole

if TYPE_CHECKING:
    from collections.abc import Iterable


class Adafactor(torch.optim.Adafactor):
    """A second moment per row and per column of a matrix, and steps relative to the size of the weights.

    Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235, algorithm 4,
    computed by `torch.optim.Adafactor`. For a matrix W (m, n) with gradient G at step t, row moments R (m, 1) and column
    moments C (1, n) of its dtype:

        R <- R + t^beta2_decay (mean of G^2 over each row - R)
        C <- C + t^beta2_decay (mean of G^2 over each column - C)
        V  = R C / max(mean(R), eps[0])
        U  = G / sqrt(max(V, eps[0]^2))
        W <- (1 - lr weight_decay) W - min(lr, 1 / sqrt(t)) max(eps[1], RMS(W)) U / max(1, RMS(U) / d)

    Whatever is no matrix has one moment per number. The learning rate is relative: 1e-3 changes the weights by a thousandth
    of their root mean square.

    torch's own default for eps[0] is the precision of the dtype, 1.2e-7 of float32 and 8e-3 of bfloat16. As it is compared
    with squares of gradients, steps then follow the size of gradients from 3e-4 downwards and are not adapted at all below
    6e-6, where many are in language models; the paper's 1e-30 has no square in float32, and torch makes NaN of zeros.

    Args:
        params: Parameters or groups of them.
        lr: Largest step, relative to the root mean square of the weights.
        beta2_decay: Exponent, at most 0, of the weight that new squares have at step t.
        eps: Least root of the second moment, whose square must be a number of the weights' dtype; and least root mean
            square of the weights, so that zeros can move.
        d: Largest root mean square of an update before it is scaled by the learning rate, at least 1.
        weight_decay: For groups that do not say their own.

    Raises:
        ValueError: a value is out of its range, or weights are sharded (torch 2.13 cannot take their norms).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, beta2_decay: float = -0.8, eps: tuple[float, float] = (1e-18, 1e-3),
        d: float = 1.0, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, beta2_decay, (eps[0], eps[1]), d, weight_decay)
        expect_whole(self.param_groups)
        for dtype in {p.dtype for group in self.param_groups for p in group["params"]}:
            least = torch.finfo(dtype).tiny ** 0.5
            expect(eps[0] >= least, f"the first of eps to be at least {least:.2g} for weights of {dtype}", eps[0])
