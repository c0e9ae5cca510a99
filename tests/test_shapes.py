"""Lengths that packed rows are filled up to."""

import itertools

import numpy as np
import pytest

from lightning_ft.data.shapes import COST, MOST, best_lengths, filled, shape_step


def total(tokens: list[int], lengths: tuple[int, ...], weight: float) -> float:
    return sum(weight * (filled(count, lengths) - count) for count in tokens) + COST * len(lengths)


@pytest.mark.parametrize("seed", range(30))
def test_no_other_lengths_cost_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, rng.choice([64, 500, 2000]), rng.integers(1, 9)).tolist()
    weight = float(rng.choice([0.1, 1.0, 5.0]))
    found = best_lengths(tokens, weight)
    assert list(found) == sorted(set(found))
    assert found[-1] == max(tokens) + -max(tokens) % 8
    possible = sorted({count + -count % 8 for count in tokens})
    others = ((*few, possible[-1]) for number in range(len(possible)) for few in itertools.combinations(possible[:-1], number))
    assert total(tokens, found, weight) == pytest.approx(min(total(tokens, other, weight) for other in others))


def test_a_run_of_any_length_meets_few_lengths_and_little_filling() -> None:
    tokens = np.random.default_rng(0).normal(1660, 220, 1000).astype(int)
    found = best_lengths(tokens, 50.0)
    assert len(found) == MOST
    share = sum(filled(count, found) for count in tokens.tolist()) / tokens.sum() - 1
    plain = sum(filled(count) for count in tokens.tolist()) / tokens.sum() - 1
    assert share < 0.7 * plain


def test_a_row_longer_than_all_that_were_looked_at() -> None:
    assert filled(90, (64, 96)) == filled(96, (64, 96)) == 96
    assert filled(1000, (64, 96)) == 1024
    assert shape_step(1000) == 64
    assert filled(5) == 8
    assert best_lengths([]) == ()
