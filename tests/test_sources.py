import gzip
import importlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.plain import SECTION_BYTES
from lightning_ft.data.sources import expand, read_rows
from lightning_ft.errors import DataError, UsageError
from lightning_ft.types import Row

ROWS = [{"q": "Eins?", "a": "1\u20ac"}, {"q": "Zwei?", "a": "2\U0001f600"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CONVERT = "convert the file with `iconv -f LATIN1 -t UTF-8` (or from whatever it was written in)"
OR_SKIP = ", or leave it out with --on_error skip (up to 1 % of the rows)."
MEND = "; mend it" + OR_SKIP


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def zst(content: bytes) -> bytes:
    module: Any = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    packed: bytes = module.compress(content)
    return packed


def compressed(name: str, content: bytes) -> bytes:
    return zst(content) if name.lower().endswith(".zst") else gzip.compress(content)


def read(name: str, content: bytes | str | None = None, policy: Any = "fail") -> list[Row]:
    """All rows of a file, every problem being an error."""
    path = Path(name)
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    bad = BadRows(policy)
    rows = list(read_rows(path, bad))
    bad.finish(len(rows) + bad.count)
    return rows


def values(rows: list[Row]) -> list[Any]:
    return [dict(row.values) for row in rows]


def message(name: str, content: bytes | str) -> str:
    with pytest.raises(DataError) as caught:
        read(name, content)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [LINES, "\ufeff" + LINES, LINES.replace("\n", "\r\n"), "\n" + LINES.replace("\n", "\n\n  \n"), LINES.rstrip("\n")],
    ids=["plain", "bom", "crlf", "blank-lines", "no-last-newline"],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "X.JSONL", "x.json"])
def test_json_lines(name: str, content: str) -> None:
    assert values(read(name, content)) == ROWS


def test_a_row_knows_its_line() -> None:
    assert [row.id for row in read("x.jsonl", "\n" + LINES.replace("\n", "\n\n"))] == ["x.jsonl:2", "x.jsonl:4"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (ROWS, ROWS),
        ({"data": ROWS}, ROWS),
        ({"17": ROWS[0], "18": {"id": "own", **ROWS[1]}}, [{"id": "17", **ROWS[0]}, {"id": "own", **ROWS[1]}]),
        ({"train": ROWS[:1], "dev": ROWS[1:]}, [{**ROWS[0], "split": "train"}, {**ROWS[1], "split": "validation"}]),
        ({"oos_val": [["hm?", "oos"]], "test": []}, [{"text": "hm?", "label": "oos", "split": "validation"}]),
        ({"messages": [{"role": "user", "content": "a"}]}, [{"messages": [{"role": "user", "content": "a"}]}]),
        ({"q": "one", "a": "row"}, [{"q": "one", "a": "row"}]),
    ],
    ids=["list", "wrapper", "ids", "splits", "pairs", "one-conversation", "one-row"],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_documents(document: Any, expected: list[Any], bom: bytes) -> None:
    for text in (json.dumps(document), json.dumps(document, indent=2).replace("\n", "\r\n")):
        rows = read("x.json", bom + text.encode())
        assert values(rows) == expected
        assert [row.line for row in rows] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize(("name", "mark"), [("x.csv", ","), ("x.tsv", "\t")])
def test_separated_values(name: str, mark: str) -> None:
    text = f'q{mark}a\n\n"two\nlines, ""so"""{mark}1\u20ac\nlast{mark}\n'
    rows = read(name, "\ufeff" + text)
    assert values(rows) == [{"q": 'two\nlines, "so"', "a": "1\u20ac"}, {"q": "last", "a": ""}]
    assert [row.line for row in rows] == [3, 5]
    assert values(read(name, text.replace("\nlast", "\r\nlast"))) == values(rows)


def test_a_long_field_is_read() -> None:
    assert values(read("x.csv", f"text\n{'a' * 300_000}\n")) == [{"text": "a" * 300_000}]


def test_parquet_and_arrow() -> None:
    rows = [{"q": f"{i}?", "turns": [{"role": "user"}]} for i in range(2500)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, "x.parquet")
    with pa.ipc.new_stream("stream.arrow", table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file("file.arrow", table.schema) as file:
        file.write_table(table)
    Path("y.parquet.gz").write_bytes(gzip.compress(Path("x.parquet").read_bytes()))
    for name in ("x.parquet", "stream.arrow", "file.arrow", "y.parquet.gz"):
        found = read(name)
        assert values(found) == rows
        assert [row.line for row in found] == list(range(1, 2501))


def test_a_folder_of_datasets_is_read() -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    (path,) = expand(["saved"])
    assert values(read(str(path))) == ROWS


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.csv.gz", "x.jsonl.zst", "x.JSON.ZST", "x.csv.zst"])
def test_compressed_files(name: str) -> None:
    content = "q,a\nEins?,1\u20ac\nZwei?,2\U0001f600\n" if "csv" in name else LINES
    assert values(read(name, compressed(name, content.encode()))) == ROWS


def test_frames_one_behind_the_other_are_one_file() -> None:
    one, two = (compressed("x.zst", line.encode()) for line in LINES.splitlines(keepends=True))
    assert values(read("x.jsonl.zst", one + two)) == ROWS


def test_zst_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    content = compressed("x.zst", LINES.encode())
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"x.jsonl.zst: expected a decoder for .zst, got none; type `pip install"):
        read("x.jsonl.zst", content)


def test_text_is_cut_between_paragraphs_and_nothing_is_lost() -> None:
    paragraphs = [f"Paragraph {i}\n" + "two lines \n" * 30 for i in range(20)]
    paragraphs = [paragraph.rstrip("\n") for paragraph in paragraphs]
    text = "\n\n".join(paragraphs).replace("\n", "\r\n")
    rows = values(read("x.txt", "\ufeff" + text))
    assert 3 < len(rows) < 8
    assert [part for row in rows for part in row["text"].split("\n\n")] == paragraphs
    assert all(len(row["text"].encode()) <= SECTION_BYTES for row in rows)


@pytest.mark.parametrize(
    "text", ["a" * 9000, "word " * 3000, "\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002" * 900, "line\n" * 2000]
)
def test_long_paragraphs_and_lines_are_cut_where_it_hurts_least(text: str) -> None:
    rows = [row["text"] for row in values(read("x.md", text))]
    assert all(len(row.encode()) <= SECTION_BYTES for row in rows)
    assert "".join("".join(rows).split()) == "".join(text.split())
    whole = {"w": "word", "l": "line", "\u543e": "\u3002"}.get(text[0], "a")
    assert all(row.strip().endswith(whole) for row in rows)


BAD: list[tuple[str, bytes | str, str]] = [
    ("x.jsonl", '{"q": "a"}\n{"q": "b",}\n',
     'x.jsonl:2: expected valid JSON, got "Expecting property name enclosed in double quotes" at column 11' + MEND),
    ("x.jsonl", '{"q": "a"}\n{"q": "b", "a": "cut o',
     'x.jsonl:2: expected valid JSON, got "Unterminated string starting at" at column 17' + MEND),
    ("x.jsonl", '{"a; b": 1, "a; b": 2}\n', "x.jsonl:1: expected each key once, got 'a; b' twice" + MEND),
    ("x.jsonl", '{"q": "a"\n', "x.jsonl:1: expected valid JSON, got \"Expecting ',' delimiter\" at column 10" + MEND),
    ("x.jsonl", '{"q": "a"}\n[1]\n', 'x.jsonl:2: expected an object such as {"text": ...}, got a list' + MEND),
    ("x.jsonl", '{"q": "a"}\nnull\n', 'x.jsonl:2: expected an object such as {"text": ...}, got null' + MEND),
    ("x.jsonl", '{"q": "a"}\n"b"\n', 'x.jsonl:2: expected an object such as {"text": ...}, got a string' + MEND),
    ("x.jsonl", '{"q": 1, "a": {"b": 1, "b": 2}}\n', "x.jsonl:1: expected each key once, got 'b' twice" + MEND),
    ("x.jsonl", '{"q": NaN}\n',
     "x.jsonl:1: expected valid JSON, got NaN, which JSON does not have; write null or a number" + OR_SKIP),
    ("x.jsonl", b'{"q": "a"}\n{"q": "caf\xe9"}\n',
     "x.jsonl:2: expected UTF-8, got the byte 0xe9 at byte 21 of the file; " + CONVERT + OR_SKIP),
    ("x.jsonl", b'\xef\xbb\xbf{"q": "\xff"}\n',
     "x.jsonl:1: expected UTF-8, got the byte 0xff at byte 10 of the file; " + CONVERT + OR_SKIP),
    ("x.jsonl", b'{"q": "a"}\n\0\0\0\0\n', "x.jsonl:2: expected text, got a NUL at byte 11 of the file" + MEND),
    ("x.jsonl", '{"q": "a\\u0000"}\n', "x.jsonl:1: expected whole characters, got the escape of U+0000" + MEND),
    ("x.jsonl", '{"q": ["a", {"\\uD83d": 1}]}\n', "x.jsonl:1: expected whole characters, got the escape of U+D83D" + MEND),
    ("x.jsonl", '{"q": ' + "9" * 5000 + "}\n",
     'x.jsonl:1: expected valid JSON, got "Number with too many digits" at column 1' + MEND),
    ("x.jsonl", '{"q": ' + "[" * 100_000 + "\n", 'x.jsonl:1: expected valid JSON, got "Nested too deeply" at column 1' + MEND),
    ("x.jsonl", '[\n{"q": "a"}\n]\n',
     "x.jsonl:1: expected an object per line, got JSON over several lines; rename the file to .json."),
    ("x.jsonl", "", "x.jsonl: expected at least one row, got an empty file; check how it was written."),
    ("x.jsonl", "\n\n \n", "x.jsonl: expected at least one row, got a file without rows; check how it was written."),
    ("x.json", "", "x.json: expected at least one row, got an empty file; check how it was written."),
    ("x.json", "[]", "x.json: expected at least one row, got a file without rows; check how it was written."),
    ("x.json", "{}", "x.json: expected at least one row, got a file without rows; check how it was written."),
    ("x.csv", "q,a\n", "x.csv: expected at least one row, got a file without rows; check how it was written."),
    ("x.txt", " \n\n", "x.txt: expected at least one row, got a file without rows; check how it was written."),
    ("x.json", '[{"q": "a"},\n {"q": }]', 'x.json:2: expected valid JSON, got "Expecting value" at column 8; mend it.'),
    ("x.json", '[{"q": "a"}\n {"q": "b"}]',
     "x.json:2: expected valid JSON, got \"Expecting ',' delimiter\" at column 2; mend it."),
    ("x.json", '[{"q": "a"}', "x.json:1: expected valid JSON, got \"Expecting ',' delimiter\" at column 12; mend it."),
    ("x.json", '[{"q": "a"},]', 'x.json:1: expected valid JSON, got "Expecting value" at column 13; mend it.'),
    ("x.json", '[{"q": "a"}] x', 'x.json:1: expected valid JSON, got "Data after the list" at column 14; mend it.'),
    ("x.json", '[{"q": "a"}, 3]', 'x.json:2: expected an object such as {"text": ...}, got a number' + MEND),
    ("x.json", '[{"q": "a", "q": "b"}, {"q": "c"}]', "x.json:1: expected each key once, got 'q' twice" + MEND),
    ("x.json", '{"1": {"q": "a"}, "1": {"q": "b"}}', "x.json: expected each key once, got '1' twice; mend it."),
    ("x.json", '{"train": [{"q": "a"}, true]}', 'x.json:2: expected an object such as {"text": ...}, got a boolean' + MEND),
    ("x.json", '"text"', "x.json: expected a list of objects, got a string; mend it."),
    ("x.json", b'[{"q": "caf\xe9"}]',
     "x.json: expected UTF-8, got the byte 0xe9 at byte 11 of the file; " + CONVERT + "."),
    ("x.csv", "q,a\n1,2\n1,2,3\n", "x.csv:3: expected 2 fields (q, a), got 3" + MEND),
    ("x.csv", 'q,a\n"1,2\n1,2\n',
     'x.csv:2: expected fields quoted as spreadsheets export them, got "unexpected end of data" in a record that goes on to'
     " line 3, as behind a stray quotation mark; mend it."),
    ("x.csv", b'q,a\n"1\n\xe9",2\n',
     "x.csv:2: expected UTF-8, got the byte 0xe9 at byte 7 of the file; " + CONVERT + OR_SKIP),
    ("x.csv", "q,q\n1,2\n", "x.csv:1: expected each column once, got 'q' twice; rename one of them."),
    ("x.csv", "q,\n1,2\n",
     "x.csv:1: expected a name for each column, got none for column 2; name it, or save the file without it."),
    ("x.csv", "q;a\n1;2\n",
     "x.csv:1: expected columns with commas between them, got the single column 'q;a'; save the file with commas."),
    ("x.txt", b"good\nb\xe4d\n",
     "x.txt:2: expected UTF-8, got the byte 0xe4 at byte 6 of the file; " + CONVERT + OR_SKIP),
    ("x.json", '{\n "q": 1\n}\n{\n "q": 2\n}\n',
     "x.json:1: expected an object per line, got JSON over several lines; put each object on a line, or all into a list."),
    ("x.jsonl.zst", b"plain",
     "x.jsonl.zst: expected a readable file, got an error after 0 rows: Unable to decompress Zstandard data: Unknown frame"
     " descriptor; check the file."),
    ("x.jsonl.zst", zst(b'{"q": 1}\n' * 1000)[:-5],
     "x.jsonl.zst: expected a readable file, got an error after 0 rows: Compressed file ended before the end-of-stream"
     " marker was reached; check the file."),
    ("x.jsonl.gz", b"plain",
     "x.jsonl.gz: expected a readable file, got an error after 0 rows: Not a gzipped file (b'pl'); check the file."),
    ("x.csv.gz", gzip.compress(b"q,a\n" + os.urandom(9000).hex().encode())[:4000],
     "x.csv.gz: expected a readable file, got an error after 0 rows: Compressed file ended before the end-of-stream marker was"
     " reached; check the file."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BAD, ids=[f"{i}-{case[0]}" for i, case in enumerate(BAD)])
def test_bad_files_get_one_sentence(name: str, content: bytes | str, expected: str) -> None:
    assert message(name, content) == expected


def test_a_missing_file_gets_one_sentence() -> None:
    with pytest.raises(DataError) as caught:
        read("none.jsonl")
    assert str(caught.value) == (
        "none.jsonl: expected a readable file, got an error after 0 rows: No such file or directory; check the file."
    )


def test_damaged_parquet() -> None:
    assert message("x.parquet", b"PAR1 and so on").startswith("x.parquet: expected a whole Parquet file, got an error: ")
    assert message("x.arrow", b"ARROW1 and so on").startswith("x.arrow: expected a whole Arrow file, got an error: ")
    assert message("y.arrow", b"\xff\xff\xff\xff\x08\0\0\0").startswith("y.arrow: expected a whole Arrow file, got an error: ")


def test_damaged_text_in_parquet() -> None:
    data = pa.array([b"good", b"b\xe4d", b"n\0l"]).cast(pa.binary())
    damaged = pa.StringArray.from_buffers(3, data.buffers()[1], data.buffers()[2])
    pq.write_table(pa.table({"text": damaged}), "x.parquet")
    bad = BadRows("fail")
    assert [row.values["text"] for row in read_rows(Path("x.parquet"), bad)] == ["good"]
    assert [str(problem) for problem in bad.problems] == [
        "x.parquet:2: expected UTF-8, got the byte 0xe4 at byte 1 of a value",
        "x.parquet:3: expected whole characters, got U+0000",
    ]


def test_an_escaped_backslash_is_no_escape() -> None:
    assert values(read("x.jsonl", '{"q": "\\\\u0000 \\ud83d\\ude00"}\n')) == [{"q": "\\u0000 \U0001f600"}]


def test_the_first_twenty_problems_of_all_files_are_listed() -> None:
    bad = BadRows("fail")
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_text("{}\n" + "[1]\n" * 12)
        assert len(list(read_rows(Path(name), bad))) == 1
    with pytest.raises(DataError) as caught:
        bad.finish(26)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "Expected every row to be readable, got 24 that are not; mend them, or leave them out with"
        " --on_error skip (up to 1 % of the rows):"
    )
    assert len(lines) == 22
    assert lines[1] == '  a.jsonl:2: expected an object such as {"text": ...}, got a list'
    assert lines[20] == '  b.jsonl:9: expected an object such as {"text": ...}, got a list'
    assert lines[21] == "  and 4 more"


def test_skip_allows_one_percent_into_the_quarantine_file() -> None:
    lines = ['{"q": "a"}'] * 199 + ["{broken"] + ["[1]"]
    Path("x.jsonl").write_text("\n".join(lines))
    quarantine = Path("out/quarantine.jsonl")
    bad = BadRows("skip", quarantine)
    rows = list(read_rows(Path("x.jsonl"), bad))
    assert (len(rows), bad.count) == (199, 2)
    with pytest.raises(DataError) as caught:
        bad.finish(199)
    assert str(caught.value).splitlines()[:2] == [
        "Expected --on_error skip to leave out at most 1 % of the rows, got 2 of 199 that are unreadable; mend them:",
        '  x.jsonl:200: expected valid JSON, got "Expecting property name enclosed in double quotes" at column 2',
    ]
    assert not quarantine.exists()
    assert bad.finish(201) == 2
    assert [json.loads(line) for line in quarantine.read_text().splitlines()] == [
        {"file": "x.jsonl", "line": 200, "raw": "{broken",
         "reason": 'expected valid JSON, got "Expecting property name enclosed in double quotes" at column 2'},
        {"file": "x.jsonl", "line": 201, "raw": "[1]", "reason": 'expected an object such as {"text": ...}, got a list'},
    ]  # fmt: skip
    assert os.listdir("out") == ["quarantine.jsonl"]


def test_skip_keeps_the_raw_bytes_of_bad_utf8_readable() -> None:
    Path("x.jsonl").write_bytes(b'{"q": "a"}\n' * 100 + b'{"q": "caf\xe9"}\n')
    bad = BadRows("skip", Path("q.jsonl"))
    assert len(list(read_rows(Path("x.jsonl"), bad))) == 100
    assert bad.finish(101) == 1
    assert json.loads(Path("q.jsonl").read_text())["raw"] == '{"q": "caf\\xe9"}'


@pytest.mark.parametrize("content", ["", "[1", '[{"q": 1} {"q": 2}]'])
def test_skip_never_passes_over_the_rest_of_a_file(content: str) -> None:
    with pytest.raises(DataError, match=r"^x\.json"):
        read("x.json", content, "skip")


def test_without_problems_nothing_is_written() -> None:
    bad = BadRows("skip", Path("q.jsonl"))
    assert bad.finish(10) == 0
    assert not Path("q.jsonl").exists()


def test_ten_thousand_rows_are_read_in_a_second() -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "What? " * 40}, {"role": "assistant", "content": "So. " * 60}]})
    Path("x.jsonl").write_text((row + "\n") * 10_000)
    best = min(_seconds_to_read("x.jsonl") for _ in range(3))
    assert best < 1


def _seconds_to_read(name: str) -> float:
    start = time.process_time()
    assert len(read(name)) == 10_000
    return time.process_time() - start


REAL = {
    "raschka_instruction/instruction-data.json": (1100, {"instruction", "input", "output"}),
    "medquad/medquad.jsonl": (None, {"question", "answer", "qid", "qtype", "focus"}),
    "gsm8k/train.jsonl": (7473, {"question", "answer"}),
    "clinc150/data_full.json": (18200, {"text", "label", "split"}),
    "banking77/train.csv": (10003, {"text", "category"}),
    "llamafactory_demo/glaive_toolcall_en_demo.json": (300, {"conversations", "tools"}),
    "llamafactory_demo/c4_demo.jsonl": (300, {"text"}),
    "text_corpora/tinyshakespeare.txt": (None, {"text"}),
    "text_corpora/wagahaiwa_nekodearu_ja.txt": (None, {"text"}),
    "pubmedqa/pubmedqa.json": (None, {"id", "QUESTION", "CONTEXTS", "LONG_ANSWER"}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_whole(name: str, shared_data: Path) -> None:
    number, columns = REAL[name]
    rows = read(str(shared_data / name))
    assert number is None or len(rows) == number
    assert all(columns <= row.values.keys() for row in rows)
    assert len({row.id for row in rows}) == len(rows)
    if name.endswith(".txt"):
        text = (shared_data / name).read_text(encoding="utf-8-sig")
        assert "".join("".join(row.values["text"] for row in rows).split()) == "".join(text.split())
    if name.startswith("clinc"):
        splits = Counter(row.values["split"] for row in rows)
        assert splits == {"train": 15100, "validation": 3100}
