"""APOLLO: the raw gradient, scaled as Adam would scale a random projection of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from lightning_ft_optimizers.low_rank import adam_direction, expect_low_rank, projected, rank_for
from lightning_ft_optimizers.parts import Parts, adamw, expect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

ScaleType = Literal["channel", "tensor"]


class APOLLO(Parts):
    """Adam's scaling of each channel, or of the whole matrix, estimated in a random subspace.

    Zhu et al. 2024, "APOLLO: SGD-like Memory, AdamW-level Performance", arXiv:2412.05270, algorithm 1. For a matrix W (m, n),
    m < n, with gradient G, and a random P (rank, m) of independent normals of variance 1 / rank that changes every
    `update_proj_gap` steps:

        R  = P G                                                                   (rank, n)
        N  = Adam's direction for R, with moments of that shape
        s  = |N[:, j]| / |R[:, j]| for each column j (channel), or |N| / |R| (tensor: APOLLO-Mini)
        U  = G diag(s), and U <- U norm_growth |U'| / |U| if |U| > norm_growth |U'|, where U' is that of the step before
        W <- (1 - lr weight_decay) W - lr sqrt(scale) U

    For m >= n, P^T multiplies from the right and rows are the channels. P is computed from (seed, number of the matrix, step)
    when it is needed and not kept; on one kind of device it is the same each time. The moments and |U'| have the dtype of W.
    What happens to zeros is ours: a channel without gradient stands still, and after a gradient of zeros nothing limits the
    next.

    Embeddings and the output layer (groups with `embedding: True`), whatever is no matrix, and matrices whose smaller side is
    not above the rank are AdamW's.

    Args:
        params: Parameter groups.
        lr: Learning rate of all groups.
        rank: Rank of the projection; None: a quarter of the matrix's smaller side, or 1 with scale_type tensor.
        update_proj_gap: Steps between two random projections.
        scale: Its square root is the factor on the steps of projected matrices, as in the authors' code; None: 1, or 128 with
            scale_type tensor.
        scale_type: What shares one factor: a channel, or (APOLLO-Mini) the whole tensor.
        norm_growth: Largest growth of the norm of a matrix's step from one step to the next; None: no limit.
        seed: Of the random projections.
        betas: Shares of the old first and second moment, each in [0, 1).
        eps: Added to the root of the second moment, above 0.
        weight_decay: For groups that do not say their own.

    Raises:
        ValueError: a value is out of its range, no matrix is larger than the rank, or matrices are sharded.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, rank: int | None = None, update_proj_gap: int = 200,
        scale: float | None = None, scale_type: ScaleType = "channel", norm_growth: float | None = 1.01, seed: int = 0,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        expect_low_rank(lr, rank, update_proj_gap, betas, eps, weight_decay)
        expect(scale is None or scale > 0, "scale above 0", scale)
        expect(scale_type in get_args(ScaleType), f"scale_type {' or '.join(get_args(ScaleType))}", scale_type)
        expect(norm_growth is None or norm_growth >= 1, "norm_growth of at least 1", norm_growth)
        expect(seed >= 0, "seed of at least 0", seed)
        if scale_type == "tensor":
            rank, scale = 1 if rank is None else rank, 128.0 if scale is None else scale
        matrices, others = projected(params, weight_decay, rank)
        parts = adamw(others, lr, betas, eps)
        if matrices:
            options = {
                "rank": rank, "update_proj_gap": update_proj_gap, "scale": 1.0 if scale is None else scale,
                "scale_type": scale_type, "norm_growth": norm_growth, "seed": seed,
            }  # fmt: skip
            parts.insert(0, _Scaled(matrices, {"lr": lr, "betas": tuple(betas), "eps": eps, **options}))
        super().__init__(parts)


class _Scaled(torch.optim.Optimizer):
    """The rule for the matrices."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the whole optimiser has the closure
        """One update."""
        number = 0
        for group in self.param_groups:
            rate = group["lr"] * math.sqrt(group["scale"])
            for p in group["params"]:
                number += 1
                if p.grad is None:
                    continue
                state = self.state[p]
                left = p.shape[0] < p.shape[1]
                seed = (group["seed"], number, state.get("step", 0) // group["update_proj_gap"])
                basis = projection(seed, min(p.shape), rank_for(p.shape, group["rank"]), p.grad)
                low = basis @ p.grad if left else p.grad @ basis.T
                direction = adam_direction(low, state, group)
                axes = (0, 1) if group["scale_type"] == "tensor" else 0 if left else 1
                step = p.grad * _ratio(direction, low, axes)
                if group["norm_growth"] is not None:
                    _limit(step, state, group["norm_growth"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=rate)


def projection(seed: tuple[int, int, int], side: int, rank: int, like: Tensor) -> Tensor:
    """A random matrix (rank, side) of independent normals of variance 1 / rank, in dtype and on the device of `like`.

    Args:
        seed: The run's seed, the number of the matrix, how often its projection has changed.
        side: Length of the side that is projected.
        rank: What it is projected to.
        like: The gradient.
    """
    run, number, change = seed
    # The generator of a CPU takes the last 32 bits: this differs in them for a million changes of 4,000 matrices.
    generator = torch.Generator(like.device).manual_seed(((run * 1_000_003 + number) * 1_000_003 + change) % 2**63)
    normals = torch.randn(rank, side, generator=generator, device=like.device)
    return (normals / math.sqrt(rank)).to(like.dtype)


def _ratio(direction: Tensor, low: Tensor, axes: int | tuple[int, int]) -> Tensor:
    """Norms of the direction over norms of the projected gradient, 0 where that has none; the axes stay with length 1."""
    norms, sizes = (torch.linalg.vector_norm(of, dim=axes, keepdim=True) for of in (direction, low))
    return torch.where(sizes > 0, norms / sizes, 0)


def _limit(step: Tensor, state: dict[str, Any], growth: float) -> None:
    """Let the norm of a step be at most `growth` times that of the step before, which `state` remembers as `norm`."""
    norm = torch.linalg.vector_norm(step)
    before = state.get("norm", torch.zeros_like(norm))
    limited = torch.where(before > 0, torch.minimum(norm, growth * before), norm)
    step.mul_((limited / norm).masked_fill_(norm == 0, 0))
    state["norm"] = limited
