from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lightning_ft.bootstrap import Comparison
from lightning_ft.signs import RULES, Course, _fisher, signs

SEEDS = range(40)
POINTS = 60
KINDS = {
    "divergence": "divergence",
    "flat": "loss not falling",
    "linear": "slow convergence",
    "stopped": "underfitting",
    "memorised": "overfitting",
    "spike": "spikes",
    "swings": "oscillation",
    "zigzag": "oscillation",
}
"""Course that is planted, and the sign that it must have."""


def course(kind: str, seed: int, noise: float = 0.05) -> list[dict[str, Any]]:
    """Sixty training losses with noise and ten validations, as metrics.jsonl has them."""
    draw = np.random.default_rng(seed)
    t = np.linspace(0, 1, POINTS)
    places = np.arange(1, 11) / 10
    train, validation = 1.2 + 1.8 * np.exp(-5 * t), 1.25 + 1.75 * np.exp(-5 * places)
    if kind == "divergence":
        train = 2 + 3 * t**2
    if kind == "flat":
        train, validation = np.full(POINTS, 2.0), np.full(10, 2.0)
    if kind == "linear":
        train, validation = 3 - 1.2 * t, 3.02 - 1.2 * places
    if kind == "stopped":
        train, validation = 3.2 - 0.9 * t, 3.1 - 0.9 * places
    if kind == "memorised":
        train, validation = train - 0.5 * t, 1.6 + 1.4 * np.exp(-6 * places) + 0.5 * places
    if kind == "swings":
        train = train * (1 + 0.15 * np.sin(2 * np.pi * 12 * t))
    if kind == "zigzag":
        validation = validation * (1 + 0.06 * (-1.0) ** np.arange(10))
    train = train * (1 + noise * draw.standard_normal(POINTS))
    if kind == "spike":
        train[int(draw.integers(10, 50))] *= 2.2
    validation = validation * (1 + 0.003 * draw.standard_normal(10))
    lines: list[dict[str, Any]] = [{"step": 10 * (i + 1), "loss": float(x)} for i, x in enumerate(train)]
    return lines + [{"step": 60 * (i + 1), "val_loss": float(x)} for i, x in enumerate(validation)]


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [sign.name for sign in signs(lines)]


@pytest.mark.parametrize("kind", KINDS)
def test_planted_courses_have_their_sign(kind: str) -> None:
    right = sum(KINDS[kind] in names(course(kind, seed)) for seed in SEEDS)
    assert right >= 0.9 * len(SEEDS)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1, 0.2])
def test_healthy_courses_have_none(noise: float) -> None:
    assert [names(course("healthy", seed, noise)) for seed in SEEDS] == [[] for _ in SEEDS]


def test_each_sign_says_what_was_seen_its_rule_and_what_to_change() -> None:
    (sign,) = signs(course("memorised", 0))
    assert sign.found.startswith("validation loss rises from ")
    assert "2 % or more above the lowest" in sign.rule
    assert "--early_stopping" in sign.change
    assert sign.sentence() == f"overfitting: {sign.found}; {sign.change}."
    assert all(rule.__doc__ for _, rule, _ in RULES)


def test_a_loss_that_is_no_number_is_divergence_and_stops_no_other_rule() -> None:
    lines = course("healthy", 1)
    for value, shown in ((math.nan, "nan"), (None, "nan"), (math.inf, "inf")):
        found = signs([*lines[:30], {"step": 301, "loss": value}])
        assert [sign.name for sign in found] == ["divergence"]
        assert found[0].found == f"a training loss is {shown}"


@pytest.mark.parametrize("lines", [[], [{"step": 1, "loss": 3.0}], [{"step": 1, "val_loss": 3.0}], course("flat", 0)[:9]])
def test_too_few_lines_say_nothing(lines: list[dict[str, Any]]) -> None:
    assert signs(lines) == []


@pytest.mark.parametrize("kind", ["healthy", "oscillation", "overfitting", "spikes", "divergence"])
def test_what_a_loss_near_nothing_does_is_no_trouble(kind: str) -> None:
    """As of pairs that are told apart, or rows that are known by heart: a thousandth of the loss, and the same course."""
    for seed in range(5):
        small = [{key: value if key == "step" else value / 1000 for key, value in line.items()} for line in course(kind, seed)]
        assert names(small) == []


def diverged(base: float, tuned: float, better: bool | None) -> list[str]:
    found = Comparison("loss", base, tuned, tuned - base, 0.0, 0.0, 0.0, better, 60, higher_is_better=False)
    return [sign.name for sign in signs(course("healthy", 0), found)]


def test_a_run_that_ends_above_its_base_has_diverged() -> None:
    """The healthy course ends at about 1.2: a base of 1.1 was better all along, one of 1.5 was learned from and overfitted."""
    assert diverged(1.1, 1.3, better=False) == ["divergence"]
    assert diverged(1.1, 1.15, better=False) == []
    assert diverged(1.5, 2.5, better=False) == []
    assert diverged(1.1, 1.3, better=None) == []


def forgets(base: float, tuned: float, better: bool | None) -> list[str]:
    found = Comparison("loss", base, tuned, tuned - base, 0.0, 0.0, 0.0, better, 60, higher_is_better=False)
    return [sign.name for sign in signs(course("healthy", 0), retention=found)]


def test_forgetting_needs_a_rise_that_is_large_and_sure() -> None:
    assert forgets(2.0, 2.11, better=False) == ["forgetting"]
    assert forgets(2.0, 2.09, better=False) == []  # 4.5 %
    assert forgets(2.0, 2.5, better=None) == []
    assert forgets(2.0, 1.5, better=True) == []


def test_fisher_by_hand() -> None:
    """m = 3, g = 0.5: 3 (1 - 0.5)^2 - 3 (1 - 1)^2 = 0.75; g of one frequency alone is certain."""
    assert _fisher(0.5, 3) == pytest.approx(0.75)
    assert _fisher(1.0, 1) == pytest.approx(1.0)
    draw = np.random.default_rng(0)
    power = draw.exponential(size=(4000, 20))
    g = float(np.quantile(power.max(1) / power.sum(1), 0.95))
    assert _fisher(g, 20) == pytest.approx(0.05, abs=0.012)


def test_ends_and_error_of_a_course() -> None:
    """Ten lines: an end has three; losses 10, 9 ... 1 fall by 7 from 9 to 2, without noise."""
    found = Course([{"step": i + 1, "loss": 10 - i} for i in range(10)])
    assert (found.part(0), found.part(1), found.fall) == (9, 2, 7)
    assert found.error == 0
