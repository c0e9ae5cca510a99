"""GaLore: Adam in the subspace of a matrix's largest singular directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from lightning_ft_optimizers.low_rank import adam_direction, expect_low_rank, projected, rank_for
from lightning_ft_optimizers.parts import Group, Parts, adamw, expect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

ProjType = Literal["std", "reverse_std", "left", "right"]


class GaLore(Parts):
    """Gradients of matrices are projected to a low rank, where Adam's moments live; the step is projected back.

    Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", arXiv:2403.03507, algorithm 2.
    For a matrix W (m, n), m < n, with gradient G; every `update_proj_gap` steps

        P  = the first `rank` columns of U, where G = U S V^T                      (m, rank)

    and in every step

        R  = P^T G                                                                 (rank, n)
        M <- b1 M + (1 - b1) R,  V <- b2 V + (1 - b2) R^2                          (rank, n)
        N  = (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)
        W <- (1 - lr weight_decay) W - lr scale P N

    For m >= n, P is of V and multiplies from the right. P, M and V have the dtype of W. What happens to a gradient of zeros,
    which has no singular directions, is ours: the next one that has some renews P.

    Embeddings and the output layer (groups with `embedding: True`), whatever is no matrix, and matrices whose smaller side is
    not above the rank are AdamW's.

    Args:
        params: Parameter groups.
        lr: Learning rate of all groups.
        rank: Rank of the projected gradient; None: a quarter of the matrix's smaller side.
        update_proj_gap: Steps between two singular value decompositions.
        scale: Factor on the steps of projected matrices.
        proj_type: Which side of a matrix is projected: std the smaller, reverse_std the larger, left the rows, right the
            columns.
        betas: Shares of the old first and second moment, each in [0, 1).
        eps: Added to the root of the second moment, above 0.
        weight_decay: For groups that do not say their own.

    Raises:
        ValueError: a value is out of its range, no matrix is larger than the rank, or matrices are sharded.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, rank: int | None = None, update_proj_gap: int = 200, scale: float = 0.25,
        proj_type: ProjType = "std", betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        expect_low_rank(lr, rank, update_proj_gap, betas, eps, weight_decay)
        expect(scale > 0, "scale above 0", scale)
        expect(proj_type in get_args(ProjType), f"proj_type {', '.join(get_args(ProjType))}", proj_type)
        matrices, others = projected(params, weight_decay, rank)
        parts = adamw(others, lr, betas, eps)
        if matrices:
            options = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale, "proj_type": proj_type}
            parts.insert(0, _Projected(matrices, {"lr": lr, "betas": tuple(betas), "eps": eps, **options}))
        super().__init__(parts)


class _Projected(torch.optim.Optimizer):
    """The rule for the matrices."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the whole optimiser has the closure
        """One update."""
        for group in self.param_groups:
            rate = group["lr"] * group["scale"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                left = _left(p.shape, group["proj_type"])
                basis = _basis(p.grad, left, state, group)
                direction = adam_direction(basis.T @ p.grad if left else p.grad @ basis, state, group)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                factors = (basis, direction) if left else (direction, basis.T)
                p.addmm_(*factors, alpha=-rate)


def _left(shape: torch.Size, proj_type: ProjType) -> bool:
    """Whether the rows are projected."""
    if proj_type in ("left", "right"):
        return proj_type == "left"
    return (shape[0] < shape[1]) == (proj_type == "std")


def _basis(grad: Tensor, left: bool, state: dict[str, Any], group: Group) -> Tensor:
    """The projection, (side, rank), made anew where it is due.

    Args:
        grad: (m, n).
        left: Whether the rows are projected: side is m, else n.
        state: Has or gets `projector` and `projector_age`, its steps.
        group: Has `rank` and `update_proj_gap`.
    """
    age: int = state["projector_age"] if state else group["update_proj_gap"]
    if age >= group["update_proj_gap"]:
        some = bool(grad.any())
        # Of zeros there is an arbitrary basis, which must not stay: the first gradient of LoRA's A is zero, and so are those of
        # a trial step, which wants to see the memory that a decomposition takes.
        if some or "projector" not in state:
            u, _, vh = torch.linalg.svd(grad.to(torch.promote_types(grad.dtype, torch.float32)), full_matrices=False)
            rank = rank_for(grad.shape, group["rank"])
            # A clone: a slice would keep the whole of U or V^T in memory.
            state["projector"] = (u[:, :rank] if left else vh[:rank].T).to(grad.dtype, copy=True).contiguous()
        age = 0 if some else age
    state["projector_age"] = age + 1
    projector: Tensor = state["projector"]
    return projector
