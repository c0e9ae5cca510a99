from __future__ import annotations

import io
import json
import math
from typing import ClassVar

import pytest
import torch

from lightning_ft.bootstrap import Comparison, Verdict, compare, paired_bootstrap
from lightning_ft.errors import UsageError
from lightning_ft.evaluation import Evaluation
from lightning_ft.likelihood import Loss, Perplexity, TokenAccuracy
from lightning_ft.metric import Metric, RowMetric
from lightning_ft.types import Conversation, Message, ScoredRow


class Length(RowMetric):
    """Number of characters of the answer."""

    name: ClassVar[str] = "length"

    def score(self, row: ScoredRow) -> float:
        return float(len(row.prediction or ""))


def means(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([values.double(), torch.ones(len(values), dtype=torch.float64)], 1)


def evaluation(nll: list[float], answers: list[str] | None = None) -> Evaluation:
    rows = [
        ScoredRow(f"f:{i}", Conversation((Message("user", "q"), Message("assistant", "ref"))), nll=x, tokens=10, correct=i % 10,
                  prompt="q" if answers else None, prediction=answers[i] if answers else None, references=("ref",))
        for i, x in enumerate(nll)
    ]  # fmt: skip
    return Evaluation.of([Loss, Perplexity, TokenAccuracy, Length], rows)


def test_two_rows_by_hand() -> None:
    """Differences 0 and 1: the mean of two draws is 0, 1/2, 1 with shares 1/4, 1/2, 1/4.

    So the 95 % interval is [0, 1], the 40 % interval [1/2, 1/2], and p = 2 min(P(d <= 0), P(d >= 0)) = 2 / 4.
    """
    base, tuned = means(torch.tensor([3.0, 5.0])), means(torch.tensor([3.0, 6.0]))
    wide = paired_bootstrap(Length, base, tuned, samples=20_000)
    assert (wide.base, wide.tuned, wide.difference, wide.rows) == (4.0, 4.5, 0.5, 2)
    assert (wide.low, wide.high, wide.better) == (0.0, 1.0, None)
    assert wide.p_value == pytest.approx(0.5, abs=0.02)
    narrow = paired_bootstrap(Length, base, tuned, samples=20_000, level=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_interval_of_a_mean_is_the_normal_one_when_rows_are_many() -> None:
    """For a mean the bootstrap distribution tends to N(mean, s^2 / N) with s^2 = sum (d - mean)^2 / N."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(800, generator=generator) * 10
    change = torch.randn(800, generator=generator).double() * 0.7 + 0.05
    got = paired_bootstrap(Length, means(common), means(common.double() + change), samples=8000)
    half = 1.959964 * float(change.std(correction=0)) / math.sqrt(800)
    assert got.low == pytest.approx(float(change.mean()) - half, abs=0.05 * half)
    assert got.high == pytest.approx(float(change.mean()) + half, abs=0.05 * half)


def test_interval_of_a_ratio_of_sums_is_that_of_the_delta_method() -> None:
    """Loss is sum nll / sum tokens with rows of different length; its variance is that of the residuals nll - loss tokens."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(5, 60, (900,), generator=generator).double()
    nll = tokens * (2 + 0.3 * torch.randn(900, generator=generator, dtype=torch.float64))
    better = nll - tokens * (0.1 + 0.2 * torch.randn(900, generator=generator, dtype=torch.float64))
    got = paired_bootstrap(Loss, torch.stack([nll, tokens], 1), torch.stack([better, tokens], 1), samples=8000)
    change = float((better - nll).sum() / tokens.sum())
    half = 1.959964 * float((better - nll - change * tokens).square().sum().sqrt() / tokens.sum())
    assert (got.low, got.high) == pytest.approx((change - half, change + half), abs=0.05 * half)
    assert got.better is True
    assert got.p_value == 0


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """1,000 experiments of 100 rows, perplexity (not linear), nominal 95 %; the standard error of the share is 0.7 %."""
    generator = torch.Generator().manual_seed(3)
    hits, n = 0, 100
    truth = math.exp(1.9) - math.exp(2.0)
    for trial in range(1000):
        base = 2.0 + 0.5 * torch.randn(n, generator=generator)
        tuned = base - 0.1 + 0.2 * torch.randn(n, generator=generator)
        got = paired_bootstrap(Perplexity, means(base), means(tuned), samples=400, seed=trial)
        hits += got.low <= truth <= got.high
    assert 0.93 <= hits / 1000 <= 0.98


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_intervals_of_a_hundred_rows_cover_at_least_93_per_cent(kind: str) -> None:
    """1,000 experiments of correlated pairs, nominal 95 %; the standard error of the share is 0.7 %.

    Mean: a skewed score, of which the tuned model's is 0.8 times the base's (mean 1) and a rest of mean 0.3: the true
    difference is 0.1. Ratio: nll over tokens of rows of 5 to 60 tokens, 2.0 and 1.9 nats per token with common noise.
    """
    generator = torch.Generator().manual_seed(5)
    experiments, n, hits = 1000, 100, 0

    def normal() -> torch.Tensor:
        return torch.randn(experiments, n, generator=generator, dtype=torch.float64)

    if kind == "mean":
        metric: type[Metric] = Length
        base, truth = (normal() ** 2 + normal() ** 2) / 2, 0.1
        tuned, count = 0.8 * base + 0.3 * normal() ** 2, torch.ones(experiments, n, dtype=torch.float64)
    else:
        metric, truth = Loss, -0.1
        count = torch.randint(5, 60, (experiments, n), generator=generator).double()
        common = 2 + 0.4 * normal()
        base, tuned = count * common, count * (common - 0.1 + 0.2 * normal())
    for trial in range(experiments):
        tables = (torch.stack([values[trial], count[trial]], 1) for values in (base, tuned))
        got = paired_bootstrap(metric, *tables, samples=400, seed=trial)
        hits += got.low <= truth <= got.high
    assert hits / experiments >= 0.93


def test_no_change_is_rarely_called_one() -> None:
    generator = torch.Generator().manual_seed(4)
    claims = 0
    for trial in range(300):
        values = torch.randn(2, 80, generator=generator)
        claims += paired_bootstrap(Length, means(values[0]), means(values[1]), samples=400, seed=trial).better is not None
    assert claims / 300 <= 0.09


def test_pairing_uses_the_same_draw_for_both() -> None:
    """Rows differ widely, the change is the same in each: every draw has exactly that difference."""
    base = torch.arange(50) * 100.0
    got = paired_bootstrap(Length, means(base), means(base + 1))
    assert (got.low, got.high) == pytest.approx((1, 1))


def test_direction_follows_the_metric_and_seed_decides_the_draws() -> None:
    worse = means(torch.linspace(1, 2, 40))
    good = means(torch.linspace(0.5, 1, 40))
    assert paired_bootstrap(Loss, worse, good).better is True
    assert paired_bootstrap(Loss, good, worse).better is False
    assert paired_bootstrap(TokenAccuracy, good, worse).better is True
    assert paired_bootstrap(Loss, worse, good, seed=1) == paired_bootstrap(Loss, worse, good, seed=1)
    assert paired_bootstrap(Loss, worse, good, seed=1).low != paired_bootstrap(Loss, worse, good, seed=2).low


def test_draws_in_chunks_are_all_made(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = means(torch.arange(40.0)), means(torch.arange(40.0).flip(0))
    whole = paired_bootstrap(Length, base, tuned, samples=1000)
    monkeypatch.setattr("lightning_ft.bootstrap.CELLS", 40 * 7)
    assert paired_bootstrap(Length, base, tuned, samples=1000) == whole


def test_few_rows_never_decide_and_nan_is_not_comparable() -> None:
    one = paired_bootstrap(Length, means(torch.tensor([1.0])), means(torch.tensor([2.0])))
    assert (one.low, one.high, one.better) == (1.0, 1.0, None)
    broken = paired_bootstrap(Length, means(torch.ones(20)), means(torch.full((20,), math.nan)))
    assert (broken.better, broken.word, math.isnan(broken.low)) == (None, "not comparable", True)


def test_tables_of_other_rows_are_refused() -> None:
    for other in (torch.ones(4, 2), torch.ones(3, 3)):
        with pytest.raises(UsageError, match="same held-out rows"):
            paired_bootstrap(Length, torch.ones(3, 2), other)
    with pytest.raises(UsageError, match="same held-out rows"):
        paired_bootstrap(Length, torch.ones(0, 2), torch.ones(0, 2))


def test_verdict_of_two_evaluations_and_back_from_json() -> None:
    base = evaluation([20.0 + i % 3 for i in range(30)], ["a" * (i % 4) for i in range(30)])
    tuned = evaluation([10.0 + i % 3 for i in range(30)], ["a" * ((i + 1) % 4) for i in range(30)])
    verdict = compare([Loss, Perplexity, TokenAccuracy, Length], base, tuned)
    assert [c.metric for c in verdict.comparisons] == ["loss", "perplexity", "token_accuracy", "length"]
    assert [c.word for c in verdict.comparisons] == ["better", "better", "no difference shown", "no difference shown"]
    assert (verdict.better, verdict.worse, verdict.rows) == (["loss", "perplexity"], [], 30)
    loss = verdict.comparisons[0]
    assert (loss.base, loss.tuned, loss.difference) == pytest.approx((2.1, 1.1, -1.0))
    assert len({sample["row"] for sample in verdict.samples}) == 8
    first = verdict.samples[0]
    assert first == {"row": "f:0", "prompt": "q", "reference": "ref", "before": "", "after": "a"}
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict(), allow_nan=False))) == verdict
    assert compare([Loss], tuned, base).worse == ["loss"]


def test_verdict_in_words() -> None:
    base, tuned = evaluation([20.0 + i % 3 for i in range(30)]), evaluation([10.0 + i % 3 for i in range(30)])
    assert compare([Loss, TokenAccuracy, Length], base, tuned).sentence() == (
        "Tuned against base model on 30 held-out rows: better in loss (2.100 -> 1.100); "
        "no difference shown in token_accuracy (45.0 % -> 45.0 %) (95% paired bootstrap intervals)."
    )
    few = compare([Loss], evaluation([20.0, 21.0]), evaluation([10.0, 11.0])).sentence()
    assert "2 held-out rows (fewer than 10 never decide): no difference shown in loss" in few
    assert Verdict([], rows=3).sentence() == "On 3 held-out rows nothing could be compared."


def test_verdict_as_a_table() -> None:
    from rich.console import Console

    base, tuned = evaluation([20.0 + i % 3 for i in range(30)]), evaluation([10.0 + i % 3 for i in range(30)])
    out = io.StringIO()
    Console(file=out, width=140).print(compare([Loss, TokenAccuracy], base, tuned).table())
    text = out.getvalue()
    assert "loss (lower is better)" in text
    assert "-1.000" in text
    assert "[-1.000, -1.000]" in text
    assert "better" in text
    assert "[+0.0 pp, +0.0 pp]" in text


def test_a_value_that_is_not_a_number_survives_json() -> None:
    verdict = Verdict([Comparison("m", 1.0, math.nan, math.nan, math.nan, math.nan, math.nan, None, 12)], rows=12)
    back = Verdict.from_dict(json.loads(json.dumps(verdict.as_dict(), allow_nan=False)))
    assert math.isnan(back.comparisons[0].tuned)
    assert "not comparable in m (1.000 -> n/a)" in back.sentence()
    with pytest.raises(UsageError, match="verdict of version 1"):
        Verdict.from_dict({"version": 0})


def test_evaluations_of_other_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="12 and 13 rows"):
        compare([Loss], evaluation([1.0] * 12), evaluation([1.0] * 13))
    other = evaluation([1.0] * 12)
    other.rows[3].row = "g:9"
    with pytest.raises(UsageError, match="f:3 and g:9"):
        compare([Loss], evaluation([1.0] * 12), other)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000"),
        (1.23456, "1.235"),
        (123.456, "123.5"),
        (12345.6, "12346"),
        (0.012345, "0.01235"),
        (2.5e7, "2.500e+07"),
        (math.inf, "n/a"),
    ],
)
def test_numbers_for_people(value: float, shown: str) -> None:
    assert Comparison("m", 0, 0, 0, 0, 0, 1, None, 1).shown(value) == shown


def test_rows_that_a_metric_does_not_apply_to_do_not_make_it_decide() -> None:
    """Nine rows of a hundred count and all change by 1; the tenth makes the interval, which is [1, 1] as before, decide."""
    base, tuned = torch.zeros(100, 2, dtype=torch.float64), torch.zeros(100, 2, dtype=torch.float64)
    base[:9, 1], tuned[:9] = 1, 1
    few = paired_bootstrap(Length, base, tuned)
    assert (few.rows, few.better, few.word) == (9, None, "no difference shown")
    base[9, 1], tuned[9] = 1, 1
    assert (paired_bootstrap(Length, base, tuned).rows, paired_bootstrap(Length, base, tuned).better) == (10, True)
