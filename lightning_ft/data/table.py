"""Encoded rows on disk: memory-mapped Arrow, so that opening a table costs nothing and reading a row copies nothing."""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lightning_ft.types import IGNORE_INDEX, Encoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SCHEMA = pa.schema([
    ("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("weights", pa.list_(pa.float32())),
    ("row", pa.string()), ("weight", pa.float32()), ("truncated", pa.int32()), ("values", pa.string()),
    ("parts", pa.list_(pa.int32())), ("supervised", pa.float64()),
])  # fmt: skip
"""`values` is the input row as JSON, kept where the row's text is needed again (validation and test); `supervised` are the
weighted supervised tokens, counted when the row is written so that opening a table reads none of its labels."""


class TableWriter:
    """Writes encoded rows to one Arrow file, a record batch at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.new_file(str(path), SCHEMA)

    def write(self, rows: Sequence[Encoded], values: Sequence[Mapping[str, Any] | None]) -> None:
        """Append rows."""
        if not rows:
            return
        columns = [
            [row.input_ids for row in rows], [row.labels for row in rows], [row.weights for row in rows],
            [row.row for row in rows], [row.weight for row in rows], [row.truncated for row in rows],
            [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values],
            [row.parts or None for row in rows],
        ]  # fmt: skip
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=False)]
        arrays.append(pa.array(_weighted(dict(zip(SCHEMA.names, arrays, strict=False)))))
        self._file.write_batch(pa.record_batch(arrays, schema=SCHEMA))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class EncodedTable:
    """The rows of one split, read where they lie on disk: those of its files, one after the other."""

    def __init__(self, *paths: Path) -> None:
        readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        self._batches = [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self._columns = [{name: batch.column(name) for name in SCHEMA.names} for batch in self._batches]
        self.lengths: NDArray[np.int64] = self._concat([_list_lengths(c["input_ids"]) for c in self._columns], np.int64)
        """(N,) tokens per row."""
        self.padded: NDArray[np.int64] = self._concat([_padded(c) for c in self._columns], np.int64)
        """(N,) tokens that a row takes under others of its kind: of several texts, each is padded to the longest."""
        self.supervised: NDArray[np.float64] = self._concat([c["supervised"] for c in self._columns], np.float64)
        """(N,) weighted supervised tokens per row, the first token of a row never counted."""

    @staticmethod
    def _concat(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, index: int) -> tuple[dict[str, Any], int]:
        block = bisect_right(self._ends, index)
        return self._columns[block], index - (self._ends[block - 1] if block else 0)

    def __getitem__(self, index: int) -> Encoded:
        columns, i = self._place(index)
        weights, parts = columns["weights"][i], columns["parts"][i]
        return Encoded(
            input_ids=columns["input_ids"][i].values.to_numpy(),
            labels=columns["labels"][i].values.to_numpy(),
            row=columns["row"][i].as_py(),
            weight=columns["weight"][i].as_py(),
            truncated=columns["truncated"][i].as_py(),
            weights=weights.values.to_numpy() if weights.is_valid else None,
            parts=tuple(parts.as_py()) if parts.is_valid else (),
        )

    @cached_property
    def texts(self) -> int:
        """Texts of each row."""
        return max(1, len(self[0].parts)) if len(self) else 1

    def tokens(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """Block by block: the tokens of its rows end to end, and where each row begins in them, with the end."""
        for columns in self._columns:
            ids = columns["input_ids"]
            yield ids.values.to_numpy(), ids.offsets.to_numpy().astype(np.int64)

    def sources(self) -> list[str]:
        """The file of each row."""
        return [name.rpartition(":")[0] for columns in self._columns for name in columns["row"].to_pylist()]

    def values(self, index: int) -> dict[str, Any]:
        """The input row, where it was kept."""
        columns, i = self._place(index)
        found: dict[str, Any] = json.loads(columns["values"][i].as_py())
        return found


def _list_lengths(column: Any) -> NDArray[np.int64]:
    offsets = column.offsets.to_numpy()
    return np.diff(offsets)  # type: ignore[no-any-return]  # pyarrow is untyped


def _padded(columns: Mapping[str, Any]) -> NDArray[np.int64]:
    parts, lengths = columns["parts"], _list_lengths(columns["input_ids"])
    if parts.null_count == len(parts):
        return lengths
    assert not parts.null_count, "one task makes pairs of all rows or of none"
    longest = np.maximum.reduceat(parts.values.to_numpy(), parts.offsets.to_numpy()[:-1])
    return longest.astype(np.int64) * _list_lengths(parts)


def _weighted(columns: Mapping[str, Any]) -> NDArray[np.float64]:
    """Weighted supervised tokens of each row of a batch."""
    labels = columns["labels"]
    offsets = labels.offsets.to_numpy()
    trained = (labels.values.to_numpy() != IGNORE_INDEX).astype(np.float64)
    trained[offsets[:-1][np.diff(offsets) > 0]] = 0.0
    weights = columns["weights"]
    if weights.null_count < len(weights):
        own = np.ones_like(trained)
        for i in range(len(weights)):
            if weights[i].is_valid:
                own[offsets[i] : offsets[i + 1]] = weights[i].values.to_numpy()
        trained *= own
    sums = np.add.reduceat(np.append(trained, 0.0), offsets[:-1]) if len(labels) else np.zeros(0)
    return sums * columns["weight"].to_numpy()  # type: ignore[no-any-return]  # pyarrow is untyped
