"""One reader per file format: from an open file to rows, with every damaged record noted and passed over."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO

from lightning_ft.data.columnar import read_arrow, read_parquet
from lightning_ft.data.plain import read_plain
from lightning_ft.data.split import split_name
from lightning_ft.data.text import BOM, MAX_RECORD, MOST_NESTED, damage_in, decode, nested, read_lines, too_long
from lightning_ft.errors import json_name
from lightning_ft.types import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_ft.data.badrows import BadRows

WRAPPERS = ("data", "rows", "examples", "instances")
"""Keys of a JSON object that holds nothing but a list of rows."""
_OLD_ENDS = "expected lines that end with a line feed, got carriage returns; convert the file with tr '\\r' '\\n'"
_DAMAGED_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_SPACE = re.compile(r"[ \t\r\n]*")


class _Decoder:
    """Strict JSON: no key twice, no NaN, no half characters. Problems of the last call are in `problem`."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            keys = [key for key, _ in pairs]
            self.problem = f"expected each key once, got '{next(key for key in keys if keys.count(key) > 1)}' twice"
        return values

    def _constant(self, name: str) -> None:
        self.problem = f"expected valid JSON, got {name}, which JSON does not have; write null or a number"

    def value(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and its end.

        Raises:
            json.JSONDecodeError: no valid JSON.
        """
        self.problem = None
        try:
            value, end = self._json.raw_decode(text, start)
            found = damage_in(value) if _DAMAGED_ESCAPE.search(text, start, end) else None
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", text, start) from None
        except ValueError:  # int() refuses more than 4300 digits
            raise json.JSONDecodeError("Number with too many digits", text, start) from None
        brackets = text.count("{", start, end) + text.count("[", start, end)
        if brackets > MOST_NESTED and nested(value) > MOST_NESTED:
            raise json.JSONDecodeError("Nested too deeply", text, start)
        if found and self.problem is None:
            self.problem = f"expected whole characters, got the escape of {found}"
        return value, end

    def document(self, text: str) -> Any:
        """The only value of the text.

        Raises:
            json.JSONDecodeError: no valid JSON, or something behind it.
        """
        value, end = self.value(text, _skip(text, 0))
        end = _skip(text, end)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value


def _skip(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _no_object(value: Any) -> str:
    return f'expected an object such as {{"text": ...}}, got {json_name(value)}'


def _syntax(error: json.JSONDecodeError) -> str:
    return f'expected valid JSON, got "{error.msg}" at column {error.colno}'


def read_jsonl(stream: BinaryIO, source: str, bad: BadRows, mend: str = "rename the file to .json") -> Iterator[Row]:
    """An object per line; `mend` is told where that is JSON over several lines."""
    decoder, first = _Decoder(), True
    for number, offset, raw in read_lines(stream, source, bad):
        if not raw.strip():
            continue
        text, problem = decode(raw, offset)
        if problem is None:
            if first and (text.strip() in ("[", "{") or text.startswith("[{")):
                bad.fatal(source, number, f"expected an object per line, got JSON over several lines; {mend}")
                return
            try:
                values = decoder.document(text.rstrip("\r\n"))  # so that an error at its end names a column of the line
                problem = decoder.problem or (None if isinstance(values, dict) else _no_object(values))
            except json.JSONDecodeError as error:
                problem = _OLD_ENDS if "\r" in text.strip() else _syntax(error)
        first = False
        if problem is None:
            yield Row(values, source, number)
        else:
            bad.add(source, number, problem, raw.rstrip(b"\r\n"))


def read_json(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[Row]:
    """A list of objects, an object that holds rows, or objects one below the other."""
    data = stream.read()
    start = len(BOM) if data.startswith(BOM) else 0
    text, problem = decode(data[start:], start)
    if problem is not None:
        bad.fatal(source, 0, problem)
        return
    if not text.strip():
        return
    try:
        if text.lstrip().startswith("["):
            yield from _read_list(text, source, bad)
            return
        decoder = _Decoder()
        document = decoder.document(text)
        problem = decoder.problem
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from read_jsonl(io.BytesIO(data), source, bad, "put each object on a line, or all into a list")
        else:
            bad.fatal(source, error.lineno, _syntax(error))
        return
    if problem is not None or not isinstance(document, dict):
        bad.fatal(source, 0, problem or f"expected a list of objects, got {json_name(document)}")
        return
    for number, row in enumerate(_rows_of(document), 1):
        if isinstance(row, dict):
            yield Row(row, source, number)
        else:
            bad.add(source, number, _no_object(row), json.dumps(row))


def _read_list(text: str, source: str, bad: BadRows) -> Iterator[Row]:
    """The objects of a JSON list, one by one, so that a problem is one of its record."""
    decoder, number, position = _Decoder(), 0, _skip(text, 0) + 1
    if text[_skip(text, position) : _skip(text, position) + 1] == "]":
        return
    while True:
        start = _skip(text, position)
        values, end = decoder.value(text, start)
        number += 1
        problem = decoder.problem or (None if isinstance(values, dict) else _no_object(values))
        if end - start > MAX_RECORD:
            problem = too_long()
        if problem is None:
            yield Row(values, source, number)
        else:
            bad.add(source, number, problem, text[start:end])
        position = _skip(text, end) + 1
        match text[position - 1 : position]:
            case ",":
                continue
            case "]" if _skip(text, position) == len(text):
                return
            case "]":
                raise json.JSONDecodeError("Data after the list", text, _skip(text, position))
            case _:
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position - 1)


def _rows_of(document: dict[str, Any]) -> Iterator[Any]:
    """The rows that a JSON object holds, by its shape; see `read_rows`."""
    values = document.values()
    if all(isinstance(value, list) for value in values):
        splits = {key: split_name(key) or split_name(re.split(r"[-_]", key)[-1]) for key in document}
        if all(splits.values()):
            for key, rows in document.items():
                for row in rows:
                    pair = isinstance(row, list) and len(row) == 2 and all(isinstance(item, str) for item in row)
                    values_of = dict(zip(("text", "label"), row, strict=True)) if pair else row
                    yield {**values_of, "split": splits[key]} if isinstance(values_of, dict) else row
            return
        if len(document) == 1 and next(iter(document)) in WRAPPERS:
            yield from next(iter(values))
            return
    if document and all(isinstance(value, dict) for value in values):
        yield from ({"id": key, **row} for key, row in document.items())
    elif document:
        yield document


class _Table:
    """Records of separated fields, each with its first and its last line, its bytes and what is wrong with it."""

    def __init__(self, stream: BinaryIO, source: str, bad: BadRows, delimiter: str) -> None:
        # The module's limit on a field, 128 KiB, is one for the whole process; it is only ever raised here.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
        self._lines: list[tuple[int, bytes, str | None]] = []
        self._source = read_lines(stream, source, bad)
        self._reader = csv.reader(self._decoded(), delimiter=delimiter, strict=True)

    def _decoded(self) -> Iterator[str]:
        """The lines as text; a damaged one is passed on as well, for the record must end where it ends."""
        for number, offset, raw in self._source:
            text, problem = decode(raw, offset)
            self._lines.append((number, raw, problem))
            yield text if problem is None else raw.decode("utf-8", "replace")

    def __iter__(self) -> Iterator[tuple[int, int, list[str], bytes, str | None]]:
        while True:
            self._lines.clear()
            problem = None
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields, problem = [""], f'expected fields quoted as spreadsheets export them, got "{error}"'
            if fields:
                damage = next((found for _, _, found in self._lines if found), None)
                raw = b"".join(raw for _, raw, _ in self._lines)
                first, last = self._lines[0][0], self._lines[-1][0]
                yield first, first if damage else last, fields, raw, damage or problem


def _read_separated(delimiter: str) -> Callable[[BinaryIO, str, BadRows], Iterator[Row]]:
    def read(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[Row]:
        """A header, then as many fields as it has."""
        header: list[str] | None = None
        for number, last, fields, raw, problem in _Table(stream, source, bad, delimiter):
            if header is None:
                header = fields
                problem = problem or next(_header_problems(header, delimiter), None)
                if problem:
                    bad.fatal(source, number, problem)
                    return
                continue
            if problem is None and len(fields) != len(header):
                problem = f"expected {len(header)} fields ({', '.join(header)}), got {len(fields)}"
            if problem is None:
                yield Row(dict(zip(header, fields, strict=True)), source, number)
            elif last > number:  # rows without end may lie in it
                problem += f" in a record that goes on to line {last}, as behind a stray quotation mark"
                bad.fatal(source, number, problem)
                return
            else:
                bad.add(source, number, problem, raw)

    return read


def _header_problems(header: list[str], delimiter: str) -> Iterator[str]:
    mark = {",": "commas", "\t": "tabs"}[delimiter]
    other = next((c for c in (";", "\t", ",", "|") if c != delimiter and c in header[0]), None)
    if len(header) == 1 and other:
        yield f"expected columns with {mark} between them, got the single column {header[0]!r}; save the file with {mark}"
    for number, name in enumerate(header, 1):
        if not name.strip():
            yield f"expected a name for each column, got none for column {number}; name it, or save the file without it"
        if header.index(name) != number - 1:
            yield f"expected each column once, got '{name}' twice; rename one of them"


READERS: dict[str, Callable[[BinaryIO, str, BadRows], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": _read_separated(","),
    ".tsv": _read_separated("\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_plain,
    ".md": read_plain,
}
"""Reader by suffix."""
