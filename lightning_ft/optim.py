"""Parameter groups, learning-rate schedules and the gradient norm, all from a number of steps that we computed."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lightning_ft.config import DecayShape, Schedule
    from lightning_ft.method import Method
    from lightning_ft.objective import Objective

ADAPTER_RATE, BASE_RATE = 2e-4, 2e-5
"""Peak learning rates of methods that name none: adapters start from zero and stand ten times as much."""
TIMESCALE = 10_000
"""Steps in which `inverse_sqrt` falls by a factor of sqrt(2) where no warm-up says how many."""
KNOWN = frozenset({"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"})
"""torch's optimisers that update each number by itself, also where a process has a part of a matrix (Rprop cannot)."""
FUSED_IN_PARTS = frozenset({"Adam", "AdamW"})
"""Those of them whose fused kernel takes a part of a matrix."""
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
"""From 1 at the beginning to 0 at the end of a decay, by the share of it that is done."""


def usual_rate(method: Method, objective: Objective) -> float:
    """The peak learning rate where the user gives none."""
    return objective.pace * (method.learning_rate or (BASE_RATE if method.trains_base else ADAPTER_RATE))


def is_elementwise(optimizer: type[torch.optim.Optimizer]) -> bool:
    """Whether the update of a number depends on that number's gradients alone, so that a part of a matrix can be updated.

    Known of torch's; others say so by an attribute `elementwise`.
    """
    known = optimizer.__module__.startswith("torch.optim") and optimizer.__name__ in KNOWN
    return bool(getattr(optimizer, "elementwise", known))


def fused(optimizer: type[torch.optim.Optimizer], *, in_parts: bool) -> dict[str, bool]:
    """The option by which an optimiser updates all parameters in one kernel, where it has one.

    Args:
        optimizer: The class.
        in_parts: Whether parameters are spread over processes or cut.
    """
    if "fused" not in inspect.signature(optimizer).parameters:
        return {}
    return {"fused": not in_parts or optimizer.__name__ in FUSED_IN_PARTS}


def alike(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups, parted so that each has tensors of one placement: torch's kernels for many tensors refuse a mix."""
    parted: list[dict[str, Any]] = []
    for group in groups:
        kinds: dict[Any, list[nn.Parameter]] = {}
        for p in group["params"]:
            kinds.setdefault(_placement(p), []).append(p)
        parted += [group | {"params": params} for params in kinds.values()] or [group]
    return parted


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of matrices, of the matrices of embeddings and output layer, and of vectors.

    The second is marked `embedding: True` for optimisers that treat the matrices between them in another way, the third
    `vectors: True`, as some have the shape of a matrix. Vectors (norms, biases, factors of an adapter) have no weight decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = _parted(trained, _outer(model), _factors(model), weight_decay)
    return [group for group in groups if group["params"]]


def decayed(model: nn.Module, groups: Iterable[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """A method's own groups, of which those that say nothing of weight decay are parted as by `param_groups`."""
    out, outer, factors = [], _outer(model), _factors(model)
    for group in groups:
        if "weight_decay" in group:
            out.append(group)
            continue
        parts = _parted(group["params"], outer, factors, weight_decay)
        out += [group | part for part in parts if part["params"]]
    return out


_OF_EMBEDDINGS = ("trainable_tokens_delta", "lora_embedding_A", "lora_embedding_B")
"""peft's names for rows of new tokens, and for A and B beside an embedding."""


_FACTORS = ("ia3_l", "boft_s")
"""peft's names of factors of a layer's outputs or inputs, which begin at 1 and have the shape of a matrix."""


def _outer(model: nn.Module) -> set[int]:
    """Ids of the matrices of embeddings and output layer, and of what an adapter adds to embeddings."""
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outer |= {id(p) for name, p in model.named_parameters() if any(part in name.split(".") for part in _OF_EMBEDDINGS)}
    if (head := getattr(model, "get_output_embeddings", lambda: None)()) is not None:
        outer.add(id(head.weight))
    return outer


def is_bias(name: str) -> bool:
    """Whether a parameter of that name is a bias: several experts have theirs as the rows of one matrix."""
    end = name.rpartition(".")[2]
    return end == "bias" or end.endswith("_bias")


def _factors(model: nn.Module) -> set[int]:
    """Ids of the parameters that are vectors in the shape of a matrix."""
    named = model.named_parameters()
    return {id(p) for name, p in named if is_bias(name) or any(part in _FACTORS for part in name.split("."))}


def _parted(params: Sequence[nn.Parameter], outer: set[int], factors: set[int], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices inside the network, matrices of embeddings and output layer, vectors."""
    matrices = [p for p in params if p.ndim >= 2 and id(p) not in factors]
    return [
        {"params": [p for p in matrices if id(p) not in outer], "weight_decay": weight_decay},
        {"params": [p for p in matrices if id(p) in outer], "weight_decay": weight_decay, "embedding": True},
        {"params": [p for p in params if p.ndim < 2 or id(p) in factors], "weight_decay": 0.0, "vectors": True},
    ]


def warmup_steps(warmup: float, total: int) -> int:
    """`warmup` is a share of all steps if below 1, else a number of steps; never all of them."""
    return min(_steps(warmup, total), max(0, total - 1))


def _steps(given: float, total: int) -> int:
    """A share of all steps if below 1, else a number of steps."""
    return math.ceil(given * total) if given < 1 else int(given)


def multiplier(
    schedule: Schedule, total: int, warmup: float, *, cycles: int = 2, decay: float = 0.2, shape: DecayShape = "1-sqrt",
    least: float = 0.0,
) -> Callable[[int], float]:  # fmt: skip
    """The factor on the learning rate at each step: linear warm-up, then what the schedule says, up to a floor.

    With w warm-up steps and T steps in all, step s = 0, 1 ... has (s + 1) / (w + 1) for s < w. Then, with the share
    x = (s - w) / (T - w) of the steps after the warm-up, f is

    - `constant`: 1
    - `linear`: 1 - x
    - `cosine`: (1 + cos(pi x)) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5 without restarts)
    - `cosine_with_restarts`: (1 + cos(pi (c x mod 1))) / 2 in c cycles of one length (the same, with T_mult = 1)
    - `inverse_sqrt`: sqrt(t / (s - w + t)) with t = w, or 10,000 without a warm-up (Vaswani et al. 2017,
      arXiv:1706.03762, eq. 3, over its peak)
    - `wsd`: 1 until the last d steps, then 1 - y, (1 + cos(pi y)) / 2 or 1 - sqrt(y) of their share y = (s - T + d) / d
      (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395, section 4; the last shape and d = T / 5: Haegele et al.
      2024, arXiv:2405.18392, section 3)

    and the factor `least` + (1 - `least`) f: after the last step it is `least` wherever something decays to an end. After the
    warm-up these are transformers' schedules of the same names.

    Args:
        schedule: one of these names.
        total: T.
        warmup: as for `warmup_steps`.
        cycles: c.
        decay: d as a share of all steps if below 1, else as a number of steps; at most all after the warm-up.
        shape: of the decay of `wsd`.
        least: the floor, as a share of the peak.
    """
    warm = warmup_steps(warmup, total)
    rest = max(1, total - warm)
    falling = max(1, min(rest, _steps(decay, total)))

    def after_warmup(step: int) -> float:
        """f, at so many steps after the warm-up."""
        if schedule == "constant":
            return 1.0
        if schedule == "inverse_sqrt":
            scale = warm or TIMESCALE
            return math.sqrt(scale / (step + scale))
        if step >= rest:
            return 0.0
        if schedule == "wsd":
            return DECAYS[shape](max(0, step - rest + falling) / falling)
        if schedule == "cosine_with_restarts":
            # In whole numbers: c x in floating point may stop short of a restart, which then has the end of a cycle.
            return DECAYS["cosine"](cycles * step % rest / rest)
        return DECAYS[schedule](step / rest)

    return lambda step: (step + 1) / (warm + 1) if step < warm else least + (1 - least) * after_warmup(step - warm)


def _buckets(grads: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gradients by mesh and placement: torch's foreach kernels refuse a mix of plain and distributed tensors."""
    buckets: dict[Any, list[Tensor]] = {}
    for grad in grads:
        buckets.setdefault(_placement(grad), []).append(grad)
    return list(buckets.values())


def _placement(tensor: Tensor) -> Any:
    return (str(tensor.device_mesh), str(tensor.placements)) if isinstance(tensor, DTensor) else None


def grad_norm(params: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, right for plain, sharded and mixed parameters."""
    norms = []
    for bucket in _buckets(p.grad for p in params if p.grad is not None):
        if all(g.dtype in (torch.bfloat16, torch.float16) for g in bucket):  # the norm of each would be rounded to 16 bits
            norms.append(torch.linalg.vector_norm(torch.stack([_wide_norm(g) for g in bucket])))
            continue
        norm = torch.nn.utils.get_total_norm(bucket)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _wide_norm(grad: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip(params: Sequence[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale the gradients so that their norm is at most `limit`; `norm` is their norm now. No host sync."""
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    for p in params:
        if p.grad is not None:
            (p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad).mul_(factor)
