from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_ft.data.table import EncodedTable, TableWriter
from lightning_ft.types import IGNORE_INDEX, Encoded


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=6))
    labels = [token if draw(st.booleans()) else IGNORE_INDEX for token in ids]
    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=len(ids), max_size=len(ids)))
    return Encoded(
        ids, labels, draw(st.text(max_size=5)), weight=draw(st.sampled_from([0.25, 1.0])), truncated=draw(st.integers(0, 9)),
        weights=weights,
    )  # fmt: skip


VALUES = st.none() | st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=4) | st.integers() | st.booleans())


def write(path: Path, blocks: list[list[tuple[Encoded, dict[str, Any] | None]]]) -> EncodedTable:
    writer = TableWriter(path)
    for block in blocks:
        writer.write([row for row, _ in block], [value for _, value in block])
    writer.close()
    return EncodedTable(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.tuples(encoded(), VALUES), max_size=4), max_size=4))
def test_rows_come_back_as_they_went(tmp_path: Path, blocks: list[list[tuple[Encoded, dict[str, Any] | None]]]) -> None:
    table = write(tmp_path / "rows.arrow", blocks)
    rows = [row for block in blocks for row, _ in block]
    values = [value for block in blocks for _, value in block]
    assert len(table) == len(rows)
    assert table.lengths.tolist() == [len(row.input_ids) for row in rows]
    for i, row in enumerate(rows):
        found = table[i]
        assert list(found.input_ids) == row.input_ids
        assert list(found.labels) == row.labels
        assert (found.row, found.weight, found.truncated) == (row.row, row.weight, row.truncated)
        assert (None if found.weights is None else list(found.weights)) == row.weights
        if values[i] is not None:
            assert table.values(i) == values[i]
        # By hand: the first token has no predecessor, so that its label never counts.
        own = [1.0] * len(row.labels) if row.weights is None else row.weights
        expected = row.weight * sum(w for w, label in list(zip(own, row.labels, strict=True))[1:] if label != IGNORE_INDEX)
        assert table.supervised[i] == pytest.approx(expected)


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    table = write(tmp_path / "none.arrow", [])
    assert len(table) == 0
    assert table.lengths.dtype == np.int64
    assert table.supervised.shape == (0,)


def test_a_row_is_a_view_of_the_file(tmp_path: Path) -> None:
    table = write(tmp_path / "one.arrow", [[(Encoded([1, 2, 3], [1, 2, 3], "f:1"), None)]])
    first: Any = table[0].input_ids
    second: Any = table[0].input_ids
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
    assert not first.flags.writeable
