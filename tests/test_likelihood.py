from __future__ import annotations

import math

import pytest
import torch

from lightning_ft.likelihood import BitsPerByte, Loss, Perplexity, TokenAccuracy
from lightning_ft.types import ScoredRow, Text

ROWS = [
    ScoredRow("x:1", Text("a"), nll=2.0, tokens=1, correct=1, utf8_bytes=4),
    ScoredRow("x:2", Text("b"), nll=3.0, tokens=9, correct=2, utf8_bytes=12),
]
"""5 nats over 10 tokens and 16 bytes; a mean over rows would be (2 + 1/3) / 2."""


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Loss, 0.5),
        (Perplexity, math.exp(0.5)),
        (TokenAccuracy, 0.3),
        (BitsPerByte, 5 / math.log(2) / 16),
    ],
)
def test_over_all_tokens_however_the_rows_come(cls: type[Loss], expected: float) -> None:
    together, apart = cls(), cls()
    together.update(ROWS)
    for row in ROWS:
        apart.update([row])
    apart.update([])
    assert float(together.compute()) == pytest.approx(expected, abs=1e-12)
    assert float(apart.compute()) == pytest.approx(expected, abs=1e-12)
    assert together.compute().dtype == torch.float64
    assert together.table().shape == (2, 2)


def test_finish_works_on_many_totals_at_once() -> None:
    totals = torch.tensor([[5.0, 10.0], [2.0, 1.0]], dtype=torch.float64)
    assert Perplexity().finish(totals).tolist() == pytest.approx([math.exp(0.5), math.exp(2)])


def test_one_bit_per_byte() -> None:
    """A fair coin per byte: 8 bytes, each ln 2 nats."""
    metric = BitsPerByte()
    metric.update([ScoredRow("x:1", Text("a"), nll=8 * math.log(2), tokens=3, utf8_bytes=8)])
    assert float(metric.compute()) == pytest.approx(1.0)


def test_which_way_is_better() -> None:
    assert [m.higher_is_better for m in (Loss, Perplexity, BitsPerByte, TokenAccuracy)] == [False, False, False, True]
    assert {m.reads for m in (Loss, Perplexity, BitsPerByte, TokenAccuracy)} == {"tokens"}
    assert [m.percent for m in (Loss, TokenAccuracy)] == [False, True]
