"""Several optimisers as one, each for its own parameters; and how parameters are divided among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

Group = dict[str, Any]


class Parts(torch.optim.Optimizer):
    """Optimisers that step together.

    A schedule, a checkpoint and a resume see one list of groups and one state: those of this optimiser.

    Args:
        parts: The optimisers, each with groups.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        self._sizes = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimiser's groups and state."""
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


def divided(
    params: Iterable[Any], weight_decay: float, fits: Callable[[Tensor], bool] = lambda matrix: True
) -> tuple[list[Group], list[Group]]:
    """The groups of the matrices inside the network, and the groups of everything else.

    Args:
        params: Parameters or groups of them; embeddings and output layer are in groups with `embedding: True`,
            and what is a vector in the shape of a matrix in ones with `vectors: True`.
        weight_decay: For groups that do not say their own.
        fits: Which matrices the first are to be; the others are everything else's.
    """
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    matrices, others = [], []
    for group in groups:
        own = list(group["params"])
        other = group.get("embedding") or group.get("vectors")
        inner = [p for p in own if p.ndim == 2 and not other and fits(p)]
        chosen = {id(p) for p in inner}
        rest = [p for p in own if id(p) not in chosen]
        options = {"weight_decay": weight_decay, **group}
        matrices += [{**options, "params": inner}] if inner else []
        others += [{**options, "params": rest}] if rest else []
    return matrices, others


def adamw(groups: list[Group], lr: float, betas: tuple[float, float], eps: float) -> list[torch.optim.Optimizer]:
    """Torch's AdamW for what a rule does not serve; none where nothing is left."""
    return [torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)] if groups else []


def expect(holds: bool, what: str, got: object) -> None:
    """Check an option.

    Raises:
        ValueError: it does not hold; says what was expected and what came.
    """
    if not holds:
        raise ValueError(f"expected {what}, got {got}")


def expect_common(lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    """Check what every rule has.

    Raises:
        ValueError: a value is out of its range.
    """
    expect(lr >= 0, "a learning rate of at least 0", lr)
    expect(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two betas in [0, 1)", betas)
    expect(weight_decay >= 0, "weight_decay of at least 0", weight_decay)


def expect_whole(groups: Iterable[Group]) -> None:
    """Check that every rank has the weights as a whole, for rules that need all of a row and of a column.

    Raises:
        ValueError: some are sharded.
    """
    sharded = any(isinstance(p, DTensor) for group in groups for p in group["params"])
    expect(not sharded, "weights that are whole on every rank, as with --strategy ddp", "sharded ones")
