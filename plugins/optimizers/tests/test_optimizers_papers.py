"""Adafactor, Lion, GaLore and APOLLO against the algorithms of their papers, written down plainly, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning_ft_optimizers.adafactor import Adafactor
from lightning_ft_optimizers.apollo import APOLLO, projection
from lightning_ft_optimizers.galore import GaLore
from lightning_ft_optimizers.lion import Lion
from torch import Tensor, nn

STEPS, GAP, LR = 14, 4, 1e-2
B1, B2, EPS = 0.8, 0.95, 1e-2
"""eps is large, as without it Adam would not notice a gradient of another size."""
GROUPS: tuple[dict[str, Any], ...] = (
    {"shapes": [(9, 4), (4, 9), (6, 6)], "weight_decay": 0.3},
    {"shapes": [(5, 8), (5, 1)], "weight_decay": 0.0, "lr": 3 * LR},
    {"shapes": [(11, 4)], "weight_decay": 0.3, "embedding": True},
    {"shapes": [(7,), (3, 4, 5)], "weight_decay": 0.1},
)
"""Tall, wide, square; another rate without decay, and a matrix too thin to be projected; a table; a vector and three axes."""


@dataclass
class Case:
    """One parameter and all that happens to it."""

    start: Tensor
    gradients: list[Tensor]
    rates: list[float]
    decay: float
    embedding: bool
    number: int
    """Place among the matrices inside the network that have a side above the rank, from 1."""

    @property
    def hidden(self) -> bool:
        return self.number > 0


def cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    found, number = [], 0
    for group in GROUPS:
        for shape in group["shapes"]:
            # Of uneven size from step to step and from row to row, so that nothing is the same by chance.
            gradients = [
                torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + step % 3) ** 3 for step in range(STEPS)
            ]
            for gradient in gradients:
                gradient[0] *= 10
            hidden = len(shape) == 2 and min(shape) > 1 and "embedding" not in group
            number += hidden
            start = torch.randn(shape, generator=generator, dtype=torch.float64)
            rates = [group.get("lr", LR) * (1 - step / STEPS) for step in range(STEPS)]
            embedding = "embedding" in group
            found.append(Case(start, gradients, rates, group["weight_decay"], embedding, number if hidden else 0))
    return found


def trained(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], given: list[Case]) -> list[Tensor]:
    """The cases' weights after all steps."""
    params = [nn.Parameter(case.start.clone()) for case in given]
    groups, first = [], 0
    for group in GROUPS:
        count = len(group["shapes"])
        options = {key: value for key, value in group.items() if key != "shapes"}
        groups.append({"params": params[first : first + count], **options})
        first += count
    optimizer = make(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for step in range(STEPS):
        for p, case in zip(params, given, strict=True):
            p.grad = case.gradients[step].clone()
        optimizer.step()
        schedule.step()
        for p, case in zip(params, given, strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, case.gradients[step]), "gradients are others' to read"
    return [p.detach() for p in params]


def lion(case: Case) -> Tensor:
    w, m = case.start, torch.zeros_like(case.start)
    for g, lr in zip(case.gradients, case.rates, strict=True):
        c = B1 * m + (1 - B1) * g
        w = w - lr * (torch.sign(c) + case.decay * w)
        m = B2 * m + (1 - B2) * g
    return w


class Adam:
    """Moments of one tensor."""

    def __init__(self) -> None:
        self.t, self.m, self.v = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, g: Tensor) -> Tensor:
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * g
        self.v = B2 * self.v + (1 - B2) * g**2
        return (self.m / (1 - B1**self.t)) / ((self.v / (1 - B2**self.t)).sqrt() + EPS)


def adamw(case: Case) -> Tensor:
    w, adam = case.start, Adam()
    for g, lr in zip(case.gradients, case.rates, strict=True):
        w = w - lr * case.decay * w - lr * adam(g)
    return w


def galore(case: Case, rank: int | None, scale: float, side: str) -> Tensor:
    if not case.hidden:
        return adamw(case)
    w, adam = case.start, Adam()
    rank = rank or min(w.shape) // 4
    rows, columns = w.shape
    left = {"left": True, "right": False, "std": rows < columns, "reverse_std": rows >= columns}[side]
    for t, (g, lr) in enumerate(zip(case.gradients, case.rates, strict=True)):
        if t % GAP == 0:
            u, _, vh = torch.linalg.svd(g)
            p = u[:, :rank] if left else vh.T[:, :rank]
        back = p @ adam(p.T @ g) if left else (p @ adam((g @ p).T)).T
        w = w - lr * case.decay * w - lr * scale * back
    return w


def apollo(case: Case, rank: int | None, alpha: float, tensor: bool, growth: float | None, hits: list[bool]) -> Tensor:
    if not case.hidden:
        return adamw(case)
    w, adam, last = case.start, Adam(), None
    side = min(w.shape)
    turn = w.shape[0] >= w.shape[1]
    for t, (g, lr) in enumerate(zip(case.gradients, case.rates, strict=True)):
        g = g.T if turn else g  # the paper has m <= n
        r = projection((5, case.number, t // GAP), side, rank or side // 4, g) @ g
        n = adam(r)
        s = n.norm() / r.norm() if tensor else torch.tensor([a.norm() / b.norm() for a, b in zip(n.T, r.T, strict=True)])
        u = g * s
        if growth is not None and last is not None:
            hits.append(bool(u.norm() / last > growth))
            u = u / u.norm() * growth * last if hits[-1] else u
        last = u.norm()
        w = w - lr * case.decay * w - lr * alpha * (u.T if turn else u)
    return w


def adafactor(case: Case, d: float) -> Tensor:
    w, r, c = case.start, torch.zeros(()), torch.zeros(())
    for t, (g, lr) in enumerate(zip(case.gradients, case.rates, strict=True), start=1):
        new, square = t**-0.8, g**2 + 1e-30
        if g.ndim > 1:
            r, c = (1 - new) * r + new * square.sum(-1), (1 - new) * c + new * square.sum(-2)
            v = r[..., :, None] * c[..., None, :] / r.sum(-1)[..., None, None]
        else:
            v = r = (1 - new) * r + new * square
        u = g / v.sqrt()
        u = u / max(1.0, u.square().mean().sqrt().item() / d)
        size = max(1e-3, w.square().mean().sqrt().item()) * min(lr, t**-0.5)
        w = (1 - lr * case.decay) * w - size * u
    return w


@pytest.mark.parametrize("d", [1.0, 1.3])
def test_adafactor_is_algorithm_4_with_the_schedule_as_the_largest_relative_step(d: float) -> None:
    for case, found in zip(cases(), trained(lambda groups: Adafactor(groups, LR, d=d), cases()), strict=True):
        torch.testing.assert_close(found, adafactor(case, d))


def test_lion_is_algorithm_2() -> None:
    for case, found in zip(cases(), trained(lambda groups: Lion(groups, LR, (B1, B2)), cases()), strict=True):
        torch.testing.assert_close(found, lion(case))


@pytest.mark.parametrize(
    ("rank", "side"), [(None, "std"), (2, "std"), (3, "std"), (2, "reverse_std"), (2, "left"), (2, "right")]
)
def test_galore_is_algorithm_2(rank: int | None, side: Any) -> None:
    given = cases()

    def make(groups: list[dict[str, Any]]) -> GaLore:
        return GaLore(groups, LR, rank, GAP, 0.7, side, (B1, B2), EPS)

    for case, found in zip(given, trained(make, given), strict=True):
        torch.testing.assert_close(found, galore(case, rank, 0.7, side))


@pytest.mark.parametrize("growth", [1.01, 1.5, None])
@pytest.mark.parametrize(("rank", "kind", "scale"), [(None, "channel", None), (2, "channel", 9.0), (None, "tensor", None)])
def test_apollo_is_algorithm_1(rank: int | None, kind: Any, scale: float | None, growth: float | None) -> None:
    given, hits = cases(), [False]

    def make(groups: list[dict[str, Any]]) -> APOLLO:
        return APOLLO(groups, LR, rank, GAP, scale, kind, growth, 5, (B1, B2), EPS)

    mini = kind == "tensor"
    alpha = {(False, None): 1.0, (False, 9.0): 3.0, (True, None): 128**0.5}[mini, scale]
    for case, found in zip(given, trained(make, given), strict=True):
        torch.testing.assert_close(found, apollo(case, 1 if mini else rank, alpha, mini, growth, hits))
    assert any(hits) is (growth is not None), "the limit was never reached"
    assert not all(hits)


def test_apollo_steps_as_far_as_adamw_when_the_projection_keeps_norms() -> None:
    """It approximates AdamW's factor of each channel, but for sqrt(rank / side), which is 1 for 39 of 40 rows."""
    torch.manual_seed(0)
    gradient = torch.randn(40, 50, dtype=torch.float64)
    plain, other = (nn.Parameter(torch.zeros(40, 50, dtype=torch.float64)) for _ in range(2))
    for p, optimizer in ((plain, APOLLO([plain], 1.0, 39)), (other, torch.optim.AdamW([other], 1.0, weight_decay=0))):
        p.grad = gradient.clone()
        optimizer.step()
    ratio = plain.detach().norm(dim=0) / other.detach().norm(dim=0)
    assert 0.7 < ratio.min() < ratio.max() < 1.5
    assert 0.95 < ratio.mean() < 1.05


def test_random_projections_are_normal_reproducible_and_all_different() -> None:
    like = torch.zeros(1, dtype=torch.float32)
    first = projection((0, 1, 0), 300, 50, like)
    assert first.shape == (50, 300)
    assert torch.equal(first, projection((0, 1, 0), 300, 50, like))
    assert torch.equal(first.bfloat16(), projection((0, 1, 0), 300, 50, like.bfloat16()))
    # 15,000 numbers: mean and variance are known to 1/122 and 1/87 of a standard deviation.
    assert abs(first.mean().item()) < 4 / 122 / 50**0.5
    assert abs(first.var().item() * 50 - 1) < 4 / 87
    seeds = [(seed, number, change) for seed in range(3) for number in (1, 2, 3) for change in (0, 1, 2)]
    drawn = torch.stack([projection(seed, 300, 50, like).flatten() for seed in seeds])
    likeness = torch.corrcoef(drawn).fill_diagonal_(0).abs().max()
    assert likeness < 5 / 15_000**0.5
