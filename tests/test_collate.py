import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ft.data.collate import muted, pack, pad
from lightning_ft.types import IGNORE_INDEX, Batch, Encoded

PAD = 99


@st.composite
def rows(draw: st.DrawFn) -> list[Encoded]:
    found = []
    for i in range(draw(st.integers(1, 5))):
        ids = draw(st.lists(st.integers(0, 50), min_size=1, max_size=9))
        labels = [token if draw(st.booleans()) else IGNORE_INDEX for token in ids]
        weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(ids), max_size=len(ids)))
        found.append(Encoded(ids, labels, f"f:{i}", weight=draw(st.sampled_from([1.0, 0.25])), weights=weights))
    return found


def weights_of(row: Encoded) -> list[float]:
    return [row.weight * weight for weight in row.weights or [1.0] * len(row.input_ids)]


@given(rows())
def test_padded_rows_can_be_read_back(given_rows: list[Encoded]) -> None:
    batch = pad(given_rows, PAD)
    width = max(len(row.input_ids) for row in given_rows)
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (len(given_rows), width)
    assert batch.documents is None
    for i, row in enumerate(given_rows):
        n = len(row.input_ids)
        assert batch.input_ids[i].tolist() == [*row.input_ids, *[PAD] * (width - n)]
        assert batch.labels[i].tolist() == [*row.labels, *[IGNORE_INDEX] * (width - n)]
        assert batch.position_ids[i].tolist() == list(range(width))
        if batch.weights is not None:
            assert batch.weights[i].tolist() == [*weights_of(row), *[0.0] * (width - n)]
    check_common(batch, given_rows)


@given(rows())
def test_packed_rows_can_be_read_back(given_rows: list[Encoded]) -> None:
    batch = pack(given_rows)
    assert batch.documents is not None
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, batch.documents[-1])
    assert batch.documents[0] == 0
    assert len(batch.documents) == len(given_rows) + 1
    for row, a, b in zip(given_rows, batch.documents, batch.documents[1:], strict=False):
        assert batch.input_ids[0, a:b].tolist() == list(row.input_ids)
        assert batch.labels[0, a:b].tolist() == list(row.labels)
        assert batch.position_ids[0, a:b].tolist() == list(range(b - a))
        if batch.weights is not None:
            assert batch.weights[0, a:b].tolist() == weights_of(row)
    check_common(batch, given_rows)


def check_common(batch: Batch, given_rows: list[Encoded]) -> None:
    assert batch.rows == tuple(row.row for row in given_rows)
    assert batch.lengths == tuple(len(row.input_ids) for row in given_rows)
    assert {t.dtype for t in (batch.input_ids, batch.labels, batch.position_ids)} == {torch.int64}
    plain = all(row.weight == 1 and row.weights is None for row in given_rows)
    assert (batch.weights is None) == plain
    if batch.weights is not None:
        assert batch.weights.dtype == torch.float32


@given(rows(), st.booleans())
def test_a_muted_batch_has_the_same_tokens_and_no_weight(given_rows: list[Encoded], packed: bool) -> None:
    make = pack if packed else lambda given: pad(given, PAD)
    batch, before = muted(make(given_rows)), make(given_rows)
    assert torch.equal(batch.input_ids, before.input_ids)
    assert torch.equal(batch.labels, before.labels)
    assert batch.weights is not None
    assert batch.weights.shape == batch.input_ids.shape
    assert not batch.weights.any()
    assert sum(batch.lengths) == 0
