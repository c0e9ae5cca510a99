"""Readers of the columnar formats, with pyarrow: Parquet, and the Arrow files of `datasets`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, BinaryIO

from lightning_ft.data.text import damage_in
from lightning_ft.types import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lightning_ft.data.badrows import BadRows


def read_parquet(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[Row]:
    """Parquet, batch by batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from _read_batches(pq.ParquetFile(stream).iter_batches(batch_size=1000), source, bad)
    except pa.ArrowException as error:
        bad.fatal(source, 0, f"expected a whole Parquet file, got an error: {error}")


def read_arrow(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[Row]:
    """The Arrow files of `datasets` (IPC streams) and Feather files (IPC files)."""
    import pyarrow as pa

    try:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        if is_file:
            reader = pa.ipc.open_file(stream)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = pa.ipc.open_stream(stream)
        yield from _read_batches(batches, source, bad)
    except pa.ArrowException as error:
        bad.fatal(source, 0, f"expected a whole Arrow file, got an error: {error}")


def _read_batches(batches: Iterable[Any], source: str, bad: BadRows) -> Iterator[Row]:
    number = 0
    for batch in batches:
        labels = _labels(batch.schema)
        for i in range(0, batch.num_rows, 1000):
            for values in _records(batch.slice(i, 1000)):
                number += 1
                for name, names in labels.items() if isinstance(values, dict) else ():
                    values[name] = _label(values[name], names)
                problem = values if isinstance(values, str) else None
                if problem is None and (found := damage_in(values)):
                    problem = f"expected whole characters, got {found}"
                if problem is None:
                    yield Row(values, source, number)
                else:
                    bad.add(source, number, problem, "" if isinstance(values, str) else repr(values))


def _labels(schema: Any) -> dict[str, list[str]]:
    """The columns that `datasets` stores as numbers of classes, each with the names of the classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: list(feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and name in schema.names
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # written by something else


def _label(value: Any, names: list[str]) -> Any:
    """The name of a class; None for -1, by which `datasets` says that a row has none."""
    if not isinstance(value, int) or not -1 <= value < len(names):
        return value
    return None if value == -1 else names[value]


def _records(batch: Any) -> list[Any]:
    """The records of a batch; instead of one that is no UTF-8, what is wrong with it."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [f"expected UTF-8, got the byte 0x{error.object[error.start]:02x} at byte {error.start} of a value"]
        return [record for i in range(batch.num_rows) for record in _records(batch.slice(i, 1))]
