import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ft.data.collate import pack, pad
from lightning_ft.data.halve import cut, halved
from lightning_ft.data.shapes import filled
from lightning_ft.data.targets import found_ahead, supervised
from lightning_ft.types import IGNORE_INDEX, Batch, Encoded


@st.composite
def rows(draw: st.DrawFn) -> list[Encoded]:
    """Up to nine rows, longest first as the schedule has them."""
    found = []
    for i in range(draw(st.integers(1, 9))):
        ids = draw(st.lists(st.integers(1, 50), min_size=2, max_size=40))
        labels = [token if draw(st.booleans()) else IGNORE_INDEX for token in ids]
        found.append(Encoded(ids, labels, f"f:{i}", weight=draw(st.sampled_from([1.0, 0.25]))))
    return sorted(found, key=lambda row: -len(row.input_ids))


def made(given_rows: list[Encoded], packed: bool) -> Batch:
    tokens = sum(len(row.input_ids) for row in given_rows)
    return found_ahead(pack(given_rows, filled(tokens), 0) if packed else pad(given_rows, 0))


@pytest.mark.parametrize("packed", [False, True])
@given(rows(), st.sampled_from([1, 2, 4, 8, 16]))
def test_parts_are_the_batches_of_their_rows(packed: bool, given_rows: list[Encoded], parts: int) -> None:
    """Every part is what the data loader would have made of its rows, and the rows are all there in their order."""
    found = cut((made(given_rows, packed),), parts)
    assert min(parts, len(given_rows)) >= len(found)
    assert parts < len(given_rows) or len(found) == len(given_rows) or packed
    left = list(given_rows)
    for part in found:
        own, left = left[: len(part.rows)], left[len(part.rows) :]
        expected = made(own, packed)
        if part.weights is None or expected.weights is None:  # of a part whose weights are all 1
            assert part.weights is None or bool((part.weights[part.labels != IGNORE_INDEX] == 1).all())
            expected.weights = part.weights
            expected.supervised = supervised(expected)
        for name in ("input_ids", "labels", "position_ids"):
            torch.testing.assert_close(getattr(part, name), getattr(expected, name), rtol=0, atol=0)
            assert getattr(part, name).is_contiguous()
        assert (part.rows, part.lengths, part.documents) == (expected.rows, expected.lengths, expected.documents)
        assert part.supervised is not None
        assert part.supervised.labels is part.labels
        mine, theirs = supervised(part), supervised(expected)
        torch.testing.assert_close((mine.index, mine.targets), (theirs.index, theirs.targets), rtol=0, atol=0)
        if mine.weights is not None:
            torch.testing.assert_close(mine.weights, theirs.weights, rtol=0, atol=0)
    assert not left


@pytest.mark.parametrize("packed", [False, True])
def test_halves_of_halves_are_quarters(packed: bool) -> None:
    batch = made([Encoded([1] * n, [1] * n, f"f:{n}") for n in range(12, 1, -1)], packed)
    twice = halved(halved((batch,)))
    assert [part.rows for part in cut((batch,), 4)] == [part.rows for part in twice]
    assert len(twice) == 4


@pytest.mark.parametrize("packed", [False, True])
def test_what_belongs_together_stays_together(packed: bool) -> None:
    batch = made([Encoded([1] * n, [1] * n, f"f:{n // 2}") for n in range(2, 8)], packed)
    batch.together, batch.reference = 2, torch.arange(6.0)
    parts = cut((batch,), 4)
    assert [part.rows for part in parts] == [("f:1", "f:1"), ("f:2", "f:2"), ("f:3", "f:3")]
    assert [part.reference.tolist() for part in parts if part.reference is not None] == [[0, 1], [2, 3], [4, 5]]
    assert halved(parts) == parts
