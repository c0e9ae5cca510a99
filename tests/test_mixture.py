"""Sources by weight: how many rows of each an epoch has, and that none is favoured among a source's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_ft.config import TrainingConfig
from lightning_ft.data.mixture import Mixture, apportioned, mixture_of
from lightning_ft.data.schedule import Schedule
from lightning_ft.errors import UsageError


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The file of each of 1,000 + 100 rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few").mkdir()
    for name in ("a.jsonl", "few/b.jsonl", "few/c.jsonl"):
        Path(name).write_text("{}\n")
    return ["a.jsonl"] * 1000 + ["few/b.jsonl"] * 60 + ["few/c.jsonl"] * 40


def mixture(sources: list[str], **options: Any) -> Mixture:
    found = mixture_of(TrainingConfig(model="m", data=["a.jsonl", "few"], **options), sources)
    assert found is not None
    return found


def test_weights_are_shares_of_an_epoch(sources: list[str]) -> None:
    found = mixture(sources, mix={"a.jsonl": 1, "few": 3})
    assert found.counts == (275, 825)
    assert found.summary() == (
        "mixture: an epoch has a.jsonl 275 of its 1,000 rows (0.28 times each, 25.0 %); few 825 of its 100 rows (8.25 times"
        " each, 75.0 %)"
    )
    assert found.as_dict()["few"] == {"rows": 100, "rows_per_epoch": 825, "share": 0.75}
    seen: Counter[int] = Counter()
    for epoch in range(8):
        rows = found.epoch(epoch)
        assert len(rows) == 1100
        assert (rows < 1000).sum() == 275
        seen.update(rows.tolist())
    assert {seen[i] for i in range(1000)} == {2, 3}, "2,200 draws from 1,000 rows: nobody is drawn less often"
    assert {seen[i] for i in range(1000, 1100)} == {66}
    assert found.epoch(3).tolist() == mixture(sources, mix={"a.jsonl": 1, "few": 3}).epoch(3).tolist()
    assert found.epoch(3).tolist() != mixture(sources, mix={"a.jsonl": 1, "few": 3}, seed=1).epoch(3).tolist()


def test_weights_as_yaml_reads_powers_of_ten(sources: list[str]) -> None:
    assert mixture(sources, mix={"a.jsonl": "1e3", "few": "3e+03"}).counts == (275, 825)


def test_temperature(sources: list[str]) -> None:
    assert mixture(sources, mix_temperature=1.0).counts == (1000, 100)
    assert mixture(sources, mix_temperature=2.0).counts == apportioned([1000**0.5, 100**0.5], 1100)
    assert mixture(sources, mix_temperature=1e9).counts == (550, 550)
    assert mixture(sources, mix_temperature=1e-5).counts == (1100, 0), "and no overflow"


def test_the_schedule_has_the_rows_of_the_mixture(sources: list[str]) -> None:
    found = mixture(sources, mix={"a.jsonl": 1, "few": 1})
    lengths, supervised = np.arange(5, 1105), np.ones(1100) * 4.0
    for packed in (False, True):
        schedule = Schedule(
            lengths=lengths, supervised=supervised, epochs=2, batch_size=8, batch_tokens=4096, accumulate=2, packed=packed,
            mixture=found,
        )  # fmt: skip
        rows: Counter[int] = Counter()
        for step in schedule:
            own = [row for rank in step.ranks for micro in rank for row in micro]
            assert step.tokens == 4.0 * len(own)
            rows.update(own)
        wanted = Counter(found.epoch(0).tolist()) + Counter(found.epoch(1).tolist())
        assert rows == wanted


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(0, 500))
def test_apportioned_adds_up_and_is_within_one(weights: list[float], total: int) -> None:
    counts = apportioned(weights, total)
    assert sum(counts) == total
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"a.jsonl": 1, "fw": 2}}, r"Expected --mix to have the names of --data, got 'fw'\. Did you mean 'few'\?"),
        ({"mix": {"a.jsonl": 1}}, "Expected --mix to have a weight for each of --data, got none for 'few'"),
        ({"mix": {"a.jsonl": 0, "few": 1}}, "Expected --mix to be weights above 0"),
        ({"mix": {"a.jsonl": "1", "few": 1}}, "Expected --mix to be weights above 0"),
        ({"mix": {1: 2}}, "Expected --mix to be weights above 0"),
        ({"mix": {"a.jsonl": 1, "few": 1}, "mix_temperature": 2.0}, "Expected either --mix or --mix_temperature, got both"),
        ({"mix_temperature": 0.0}, "Expected --mix_temperature to be above 0"),
    ],
)
def test_what_is_refused(sources: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mixture(sources, **options)


def test_a_source_without_training_rows(sources: list[str]) -> None:
    with pytest.raises(UsageError, match="Expected training rows in 'few' for the mixture, got none"):
        mixture(sources[:1000], mix={"a.jsonl": 1, "few": 1})


def test_no_mixture_is_asked_for() -> None:
    assert mixture_of(TrainingConfig(model="m", data=["a"]), ["a"]) is None
