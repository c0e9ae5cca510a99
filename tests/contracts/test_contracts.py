"""Every registered class against every clause of its contract. A class that a new plugin registers is checked here unasked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ft.registry import registry
from lightning_ft.testing import properties
from lightning_ft.testing.checks import METRIC_CLAUSES, TASK_CLAUSES, rows_for
from lightning_ft.testing.models import tiny_llama
from lightning_ft.testing.objectives import OBJECTIVE_CLAUSES, halves, text_batch
from lightning_ft.types import Conversation

CORE_ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}], "id": 7}],
    "text": [{"text": "Once upon a time.", "id": 7}],
}


@pytest.mark.parametrize("clause", TASK_CLAUSES)
@pytest.mark.parametrize("name", list(registry().tasks))
def test_task(name: str, clause: str) -> None:
    cls = registry().tasks[name].cls
    TASK_CLAUSES[clause](cls(), getattr(cls, "samples", None) or CORE_ROWS[name])


@pytest.mark.parametrize("name", list(registry().tasks))
def test_task_names_registered_metrics(name: str) -> None:
    cls = registry().tasks[name].cls
    assert [metric for metric in cls.metrics if metric not in registry().metrics] == []


@pytest.mark.parametrize("clause", METRIC_CLAUSES)
@pytest.mark.parametrize("name", list(registry().metrics))
def test_metric(name: str, clause: str) -> None:
    cls = registry().metrics[name].cls
    right, wrong = rows_for(cls, right=True), rows_for(cls, right=False)
    try:
        for row in (*right, *wrong):
            cls().check(row)
    except ValueError as error:
        pytest.skip(f"{name} refuses the kit's rows: {error}; its own tests bring others")
    METRIC_CLAUSES[clause](cls, right, wrong)


@pytest.mark.parametrize("clause", OBJECTIVE_CLAUSES)
@pytest.mark.parametrize("name", list(registry().objectives))
def test_objective(name: str, clause: str) -> None:
    cls = registry().objectives[name].cls
    if Conversation not in cls.examples:
        pytest.skip(f"{name} eats {', '.join(kind.__name__ for kind in cls.examples)}; its own tests bring batches of them")
    OBJECTIVE_CLAUSES[clause](cls(), tiny_llama(), text_batch(), halves(text_batch()))


@pytest.mark.parametrize("name", list(registry().methods))
def test_the_table_of_methods_says_what_the_clauses_gave(name: str) -> None:
    """Every clause of a method's contract on every family that it does not refuse."""
    page = (Path(__file__).parents[2] / "plugins" / "README.md").read_text(encoding="utf-8")
    told = next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "a row: type `python tests/pages.py`")
    assert told == f"| {' | '.join(properties.row(name))} |"


def optimizer_of(name: str, params: Any) -> torch.optim.Optimizer:
    """A registered optimiser; one that says that it needs other hardware is skipped."""
    try:
        optimizer: torch.optim.Optimizer = registry().optimizers[name].cls(params, lr=0.01)
    except ValueError as error:
        pytest.skip(f"{name}: {error}")
    return optimizer


@pytest.mark.parametrize("name", list(registry().optimizers))
def test_optimizer_goes_downhill(name: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = optimizer_of(name, [weight])
    values = []
    for _ in range(20):
        loss = weight.square().sum()
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", list(registry().optimizers))
def test_optimizer_goes_on_from_its_saved_state(name: str) -> None:
    def made(values: torch.Tensor, embedding: torch.Tensor) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        params = [torch.nn.Parameter(values.clone()), torch.nn.Parameter(embedding.clone())]
        groups = [{"params": params[:1]}, {"params": params[1:], "embedding": True}]
        return params, optimizer_of(name, groups)

    def step(params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    params, optimizer = made(torch.ones(3, 4), torch.ones(5, 2))
    step(params, optimizer, 0)
    twins, resumed = made(params[0].detach(), params[1].detach())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(params, optimizer, 1)
    step(twins, resumed, 1)
    assert all(torch.equal(mine, other) for mine, other in zip(params, twins, strict=True))


@pytest.mark.parametrize("kind", ["method", "objective"])
def test_there_is_one_default(kind: str) -> None:
    assert registry()[kind].default().cls.default
