"""Parameter groups, learning-rate schedules and the gradient norm, all from a number of steps that we computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lightning_ft.config import Schedule


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of matrices, of the matrices of embeddings and output layer, and of vectors.

    The second is marked `embedding: True` for optimisers that treat the matrices between them in another way. Vectors
    (norms, biases) have no weight decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if (head := getattr(model, "get_output_embeddings", lambda: None)()) is not None:
        outer.add(id(head.weight))
    groups = [
        {"params": [p for p in trained if p.ndim >= 2 and id(p) not in outer], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim >= 2 and id(p) in outer], "weight_decay": weight_decay, "embedding": True},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def warmup_steps(warmup: float, total: int) -> int:
    """`warmup` is a share of all steps if below 1, else a number of steps; never all of them."""
    steps = math.ceil(warmup * total) if warmup < 1 else int(warmup)
    return min(steps, max(0, total - 1))


def multiplier(schedule: Schedule, total: int, warmup: float) -> Callable[[int], float]:
    """The factor on the learning rate at each step: linear warm-up, then the decay, zero after the last step.

    With w warm-up steps and T steps in all: (s + 1) / (w + 1) for s < w; then, with x = (s - w) / (T - w), 1 - x
    (linear), (1 + cos(pi x)) / 2 (cosine; Loshchilov and Hutter 2017, eq. 5 without restarts) or 1 (constant).
    """
    warm = warmup_steps(warmup, total)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        x = min(1.0, (step - warm) / max(1, total - warm))
        return {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "constant": 1.0}[schedule]

    return factor


def _buckets(grads: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gradients by mesh and placement: torch's foreach kernels refuse a mix of plain and distributed tensors."""
    buckets: dict[Any, list[Tensor]] = {}
    for grad in grads:
        key = (str(grad.device_mesh), str(grad.placements)) if isinstance(grad, DTensor) else None
        buckets.setdefault(key, []).append(grad)
    return list(buckets.values())


def grad_norm(params: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, right for plain, sharded and mixed parameters."""
    norms = []
    for bucket in _buckets(p.grad for p in params if p.grad is not None):
        norm = torch.nn.utils.get_total_norm(bucket)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def clip(params: Sequence[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale the gradients so that their norm is at most `limit`; `norm` is their norm now. No host sync."""
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    for p in params:
        if p.grad is not None:
            (p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad).mul_(factor)
