"""Learning-rate schedules, weight decay and clipping: what the optimiser is given is what the formulas say."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import optimization as theirs

from lightning_ft import optim

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import TinyFit

WARM, TOTAL = 4, 28


def rates_of(build: Callable[..., Any], **options: Any) -> list[float]:
    """What transformers gives each step, and after the last."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler = build(optimizer, num_warmup_steps=WARM, **options)
    rates = []
    for _ in range(TOTAL + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("name", "options", "build"),
    [
        ("constant", {}, theirs.get_constant_schedule_with_warmup),
        ("linear", {}, partial(theirs.get_linear_schedule_with_warmup, num_training_steps=TOTAL)),
        ("cosine", {}, partial(theirs.get_cosine_schedule_with_warmup, num_training_steps=TOTAL)),
        ("cosine", {"least": 0.1}, partial(
            theirs.get_cosine_with_min_lr_schedule_with_warmup, num_training_steps=TOTAL, min_lr_rate=0.1)),
        *(("cosine_with_restarts", {"cycles": n}, partial(
            theirs.get_cosine_with_hard_restarts_schedule_with_warmup, num_training_steps=TOTAL, num_cycles=n))
          for n in (1, 2, 3, 8)),
        ("inverse_sqrt", {}, theirs.get_inverse_sqrt_schedule),
        *(("wsd", {"shape": shape, "decay": decay, "least": least}, partial(
            theirs.get_wsd_schedule, num_training_steps=TOTAL, num_decay_steps=steps, decay_type=shape, min_lr_ratio=least))
          for shape in ("linear", "cosine", "1-sqrt") for decay, steps in ((0.25, 7), (12, 12)) for least in (0.0, 0.2)),
    ],
)  # fmt: skip
def test_after_the_warmup_the_schedules_are_those_of_transformers(
    name: Any, options: dict[str, Any], build: Callable[..., Any]
) -> None:
    factor = optim.multiplier(name, TOTAL, WARM, **options)
    wanted = rates_of(build)
    found = [factor(step) for step in range(TOTAL + 1)]
    assert found[WARM:] == pytest.approx(wanted[WARM:], abs=1e-12)
    # theirs begin at nothing, which would waste the first step
    assert found[:WARM] == pytest.approx([(step + 1) / (WARM + 1) for step in range(WARM)])


def test_without_a_warmup_the_inverse_square_root_has_the_timescale_of_transformers() -> None:
    factor = optim.multiplier("inverse_sqrt", 5, 0)
    assert [factor(step) for step in range(5)] == pytest.approx([math.sqrt(10_000 / (10_000 + s)) for s in range(5)])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_every_cycle_begins_at_the_peak(cycles: int, length: int, warm: int) -> None:
    """In floating point 49 * (1 / 49) is below 1, and the restart would have the end of a cycle."""
    factor = optim.multiplier("cosine_with_restarts", warm + cycles * length, warm, cycles=cycles)
    assert {factor(warm + i * length) for i in range(cycles)} == {1.0}


@given(
    st.sampled_from(["constant", "linear", "cosine", "cosine_with_restarts", "inverse_sqrt", "wsd"]), st.integers(1, 50),
    st.floats(0, 60), st.integers(1, 9), st.floats(0.01, 60), st.sampled_from(["linear", "cosine", "1-sqrt"]),
)  # fmt: skip
def test_no_step_of_a_run_is_lost(name: Any, total: int, warmup: float, cycles: int, decay: float, shape: Any) -> None:
    factor = optim.multiplier(name, total, warmup, cycles=cycles, decay=decay, shape=shape)
    assert all(0 < factor(step) <= 1 for step in range(total))
    assert factor(total) == 0 or name in ("constant", "inverse_sqrt")


RUNS: dict[str, tuple[dict[str, Any], list[float]]] = {
    # six steps, the first of which warms up: 1/2; then x = 0, 1/5 ... 4/5
    "constant": ({}, [1, 1, 1, 1, 1]),
    "linear": ({"lr_min": 0.5}, [1, 0.9, 0.8, 0.7, 0.6]),
    "cosine": ({}, [(1 + math.cos(math.pi * x / 5)) / 2 for x in range(5)]),
    "cosine_with_restarts": ({"lr_cycles": 5}, [1, 1, 1, 1, 1]),
    "inverse_sqrt": ({}, [1, math.sqrt(1 / 2), math.sqrt(1 / 3), 1 / 2, math.sqrt(1 / 5)]),
    "wsd": ({"lr_decay": 4, "lr_decay_shape": "linear"}, [1, 1, 0.75, 0.5, 0.25]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_follows_its_schedule(tiny_fit: TinyFit, name: str) -> None:
    """SGD: every step goes by exactly rate times gradient."""
    options, factors = RUNS[name]
    seen = tiny_fit(lr_scheduler=name, warmup=1, optimizer="SGD", learning_rate=0.01, **options)
    assert seen.rates == pytest.approx([0.01 * factor for factor in [0.5, *factors]])
    for step, rate in enumerate(seen.rates):
        for parameter, before in seen.weights[step].items():
            wanted = before - rate * seen.gradients[step][parameter]
            torch.testing.assert_close(seen.weights[step + 1][parameter], wanted, rtol=1e-6, atol=1e-7)


def test_a_share_and_a_number_of_steps_warm_up_alike(tiny_fit: TinyFit) -> None:
    share, number = (tiny_fit(lr_scheduler="constant", warmup=warmup) for warmup in (0.5, 3))
    assert share.rates == number.rates == pytest.approx([1e-3 * factor for factor in (0.25, 0.5, 0.75, 1, 1, 1)])


def test_the_defaults_are_those_of_the_options() -> None:
    from lightning_ft.config import TrainingConfig

    config = TrainingConfig(model="m", data=["d"], lr_scheduler="wsd")
    options = {"cycles": config.lr_cycles, "decay": config.lr_decay, "shape": config.lr_decay_shape, "least": config.lr_min}
    plain, given_ = optim.multiplier("wsd", 50, 5), optim.multiplier("wsd", 50, 5, **options)  # type: ignore[arg-type]  # of many types
    assert [plain(step) for step in range(51)] == [given_(step) for step in range(51)]


def test_weight_decay_shrinks_matrices_and_nothing_else(tiny_fit: TinyFit) -> None:
    """AdamW's first step is p (1 - rate decay) - rate g / (|g| + eps), as both moments are those of g itself."""
    rate, decay = 0.01, 0.5
    seen = tiny_fit(max_steps=1, learning_rate=rate, weight_decay=decay, lr_scheduler="constant", warmup=0)
    shapes = set()
    for name, before in seen.weights[0].items():
        gradient = seen.gradients[0][name]
        kept = 1 - rate * decay if before.ndim >= 2 else 1
        torch.testing.assert_close(seen.weights[1][name], before * kept - rate * gradient / (gradient.abs() + 1e-8))
        shapes.add(before.ndim)
    assert shapes == {1, 2}


def test_own_groups_of_a_method_decay_no_vectors_either() -> None:
    matrix, vector, other = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,), (2,)))
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    outer = model[0].weight
    groups = [{"params": [vector, matrix, outer], "lr": 0.5}, {"params": [other], "weight_decay": 0.3}]
    parted, embedding, bare, told = optim.decayed(model, groups, 0.1)
    assert (parted["params"], parted["lr"], parted["weight_decay"]) == ([matrix], 0.5, 0.1)
    assert embedding == {"params": [outer], "lr": 0.5, "weight_decay": 0.1, "embedding": True}
    assert (bare["params"], bare["lr"], bare["weight_decay"]) == ([vector], 0.5, 0.0)
    assert told == {"params": [other], "weight_decay": 0.3}


def test_clipping_scales_the_gradient_of_a_run_to_the_norm(tiny_fit: TinyFit) -> None:
    free, clipped = (tiny_fit(max_steps=1, max_grad_norm=limit) for limit in (0.0, 0.25))
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in free.gradients[0].values()]))
    assert norm > 1
    for name, gradient in free.gradients[0].items():
        torch.testing.assert_close(clipped.gradients[0][name], gradient * 0.25 / norm, rtol=1e-4, atol=1e-7)


def test_clipping_leaves_a_small_gradient_alone() -> None:
    params = [nn.Parameter(torch.zeros(3))]
    params[0].grad = torch.tensor([0.3, 0.0, 0.4])
    optim.clip(params, optim.grad_norm(params), 1.0)
    torch.testing.assert_close(params[0].grad, torch.tensor([0.3, 0.0, 0.4]))
