"""Optimisers that say they treat every number by itself update parts of matrices on two processes as whole ones on one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_ft.engine.sharding import whole
from lightning_ft.optim import is_elementwise
from lightning_ft.registry import registry
from lightning_ft.testing.ranks import as_rank, run_on_ranks

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 4


def trained(optimizer: Any, *, spread: bool) -> list[torch.Tensor]:
    """A few steps of a small network, the same on every rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    if spread:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    x, y = torch.randn(16, 6), torch.randn(16, 3)
    steps = optimizer(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(STEPS):
        steps.zero_grad()
        (model(x) - y).square().sum().backward()
        steps.step()
    return [whole(p.detach()) for p in model.parameters()]


def elementwise() -> list[str]:
    """Names of this plugin's."""
    ours = {
        name: entry.cls for name, entry in registry().optimizers.items() if entry.cls.__module__.startswith("lightning_ft_opt")
    }
    return [name for name, cls in ours.items() if is_elementwise(cls)]


def test_parts_of_matrices_move_as_whole_ones(tmp_path: Path) -> None:
    assert len(elementwise()) == 1, "Lion; the others look at rows, columns or directions of matrices"
    outputs = run_on_ranks(__file__, 2, tmp_path)
    assert outputs[0].count("equal: ") == len(elementwise())


if __name__ == "__main__":
    with as_rank():
        for which in elementwise():
            cls = registry().optimizers[which].cls
            for one, other in zip(trained(cls, spread=False), trained(cls, spread=True), strict=True):
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
            print("equal:", which)
