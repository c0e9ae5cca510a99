"""What GaLore and APOLLO share: Adam's moments of a gradient that was projected to a low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lightning_ft_optimizers.parts import Group, divided, expect, expect_common, expect_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def rank_for(shape: torch.Size, rank: int | None) -> int:
    """The rank for a matrix; None: a quarter of its smaller side, as both papers have it."""
    return max(1, min(shape) // 4) if rank is None else rank


def projected(params: Iterable[Any], weight_decay: float, rank: int | None) -> tuple[list[Group], list[Group]]:
    """The groups of the matrices that a projection makes smaller, and the groups of everything else.

    Raises:
        ValueError: there are matrices, but a rank was asked for that makes none of them smaller; or matrices are sharded.
    """
    given = list(params)
    inner, _ = divided(given, weight_decay)
    matrices, others = divided(given, weight_decay, lambda matrix: rank_for(matrix.shape, rank) < min(matrix.shape))
    shapes = [tuple(p.shape) for group in inner for p in group["params"]]
    largest = max(shapes, key=min, default=())
    expect(
        bool(matrices) or not shapes or rank is None,
        f"a rank below the smaller side of some matrix, of which the largest is {' x '.join(map(str, largest))}", rank,
    )  # fmt: skip
    expect_whole(matrices)
    return matrices, others


def expect_low_rank(
    lr: float, rank: int | None, update_proj_gap: int, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    """Check the options of both.

    Raises:
        ValueError: a value is out of its range.
    """
    expect_common(lr, betas, weight_decay)
    expect(rank is None or rank >= 1, "rank of at least 1", rank)
    expect(update_proj_gap >= 1, "update_proj_gap of at least 1", update_proj_gap)
    expect(eps > 0, "eps above 0", eps)


def adam_direction(low: Tensor, state: dict[str, Any], group: Group) -> Tensor:
    """M^ / (sqrt(V^) + eps), Adam's direction (Kingma and Ba 2015, algorithm 1) for a projected gradient.

    Args:
        low: The projected gradient.
        state: Gets `step`, and the moments `exp_avg` and `exp_avg_sq` in the shape and dtype of `low`.
        group: Has `betas` and `eps`.
    """
    beta1, beta2 = group["betas"]
    if "exp_avg" not in state:
        state["step"] = 0
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(low), torch.zeros_like(low)
    state["step"] += 1
    mean = state["exp_avg"].lerp_(low, 1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
    root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
    return torch.div(mean, root, out=root).div_(1 - beta1 ** state["step"])
