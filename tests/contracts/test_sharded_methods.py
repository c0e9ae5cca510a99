"""Every method that says it can be spread over processes trains on two of them what it trains on one."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_ft.engine.loss import token_loss
from lightning_ft.engine.sharding import DATA, TENSOR, Shards, gathered
from lightning_ft.errors import UsageError
from lightning_ft.optim import alike, clip, grad_norm, param_groups
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_model
from lightning_ft.testing.ranks import as_rank, run_on_ranks
from lightning_ft.types import Batch

STEPS = 3


def batch_of(rank: int, step: int) -> Batch:
    ids = torch.randint(32, 200, (2, 24), generator=torch.Generator().manual_seed(10 * step + rank))
    return Batch(ids, ids.clone(), torch.arange(24).expand(2, 24), None, ("a:1", "a:2"))


def train(method: Any, model: nn.Module, ranks: list[int], size: int) -> None:
    """A few steps; where ranks average their gradients, each counts for as many as they are."""
    optimizer = torch.optim.AdamW(alike(param_groups(model, 0.01)), lr=1e-2, eps=1e-3)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(STEPS):
        method.before_step(model, step)
        for rank in ranks:
            (token_loss(model, batch_of(rank, step))[0] * size / 92).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        clip(params, grad_norm(params), 1.0)
        optimizer.step()
        method.on_step(model, step)
        optimizer.zero_grad()


def attached(method: Any) -> nn.Module:
    """On a Llama, or where the method finds nothing to train in it, on a GPT-2, which has biases."""
    torch.manual_seed(0)
    try:
        model: nn.Module = method.attach(tiny_model("llama"), STEPS)
    except UsageError:
        model = method.attach(tiny_model("gpt2"), STEPS)
    return model


def compare(name: str, rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    method = registry().methods[name].cls()
    states = []
    for size in (1, 2):
        model = attached(method).train()
        if size == 2:
            mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=(DATA, TENSOR))
            Shards(model, mesh, spread=True, compute=None)
        train(method, model, [rank] if size == 2 else [0, 1], size)
        states.append(gathered(method.trainable_state(model), keep=True))
    assert states[0].keys() == states[1].keys()
    assert states[0]
    start = method.trainable_state(attached(method))
    assert any(not torch.equal(states[0][name], start[name]) for name in start)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-5, atol=1e-6)


def shardable() -> list[str]:
    return [entry.name for entry in registry().methods.values() if entry.cls.can_shard]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    assert {"full", "lora"} <= set(shardable())
    outputs = run_on_ranks(__file__, 2, tmp_path)
    assert outputs[0].count("equal: ") == len(shardable())


if __name__ == "__main__":
    with as_rank() as number:
        for which in shardable():
            compare(which, number)
            print("equal:", which)
