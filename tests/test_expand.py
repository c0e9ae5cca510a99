import os
from pathlib import Path

import pytest

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.sources import expand, read_rows, splits_by_name
from lightning_ft.errors import DataError, UsageError

SUFFIXES = ".jsonl .ndjson .json .csv .tsv .parquet .arrow .txt .md"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text('{"q": "a"}\n')


def test_expand_files_globs_and_folders() -> None:
    touch("d/b.jsonl", "d/a.csv.gz", "d/sub/c.txt", "d/LICENSE.txt", "d/README.md", "d/.hidden.jsonl", "d/.git/x.json",
          "d/dataset_info.json", "d/model.bin", "d/citation-intent.jsonl", "e[1].json")  # fmt: skip
    assert [str(path) for path in expand(["d"])] == ["d/a.csv.gz", "d/b.jsonl", "d/citation-intent.jsonl", "d/sub/c.txt"]
    assert [str(path) for path in expand(["d/*.jsonl"])] == ["d/b.jsonl", "d/citation-intent.jsonl"]
    assert [str(path) for path in expand(["d/**/*.txt"])] == ["d/LICENSE.txt", "d/sub/c.txt"]
    assert [str(path) for path in expand(["e[1].json"])] == ["e[1].json"]
    assert [str(path) for path in expand(["d/b.jsonl", "d/*.jsonl", str(Path("d/b.jsonl").resolve())])] == [
        "d/b.jsonl",
        "d/citation-intent.jsonl",
    ]


def test_nothing_in_a_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linked folder is read, one that leads back is refused, and so is what may not be read, or has no reader."""
    touch("elsewhere/2023/a.jsonl", "d/b.jsonl", "g/a.jsonl", "g/b.jsonl.bz2", "g/README.md")
    Path("d/2023").symlink_to(Path("elsewhere/2023").resolve())
    assert [str(path) for path in expand(["d"])] == ["d/2023/a.jsonl", "d/b.jsonl"]
    with pytest.raises(
        DataError, match=r"^g/\*: expected data files .*, got 'g/b\.jsonl\.bz2' among those that match; convert it"
    ):
        expand(["g/*"])
    assert [str(path) for path in expand(["g/*.jsonl"])] == ["g/a.jsonl"]
    Path("d/.trash").symlink_to(Path("d").resolve())
    assert len(expand(["d"])) == 2, "hidden folders are no data"
    touch("one/a.jsonl", "two/b.jsonl")
    Path("one/x").symlink_to(Path("two").resolve())
    Path("two/y").symlink_to(Path("one").resolve())
    with pytest.raises(DataError, match=r"^one/x/y: expected a folder, got a link to one that it lies in"):
        expand(["one"])
    Path("d/again").symlink_to(Path("d").resolve())
    with pytest.raises(DataError, match=r"^d/again: expected a folder, got a link to one that it lies in; take it out"):
        expand(["d"])
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(DataError, match=r"^g/a\.jsonl: expected a file that can be read, got one that this user may not"):
        expand(["g/a.jsonl"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trian.jsonl", "trian.jsonl: expected a file or folder, got nothing of that name; check the path."
                        " Did you mean 'train.jsonl'?"),
        ("no/such.jsonl", "no/such.jsonl: expected a file or folder, but there is no folder 'no'; check the path."),
        ("empty", f"empty: expected a folder with data files ({SUFFIXES}), got none in it; name a file."),
        ("*.csv", "*.csv: expected data files that match the pattern, got none; try the pattern with `ls`."),
        ("x.xlsx", f"x.xlsx: expected a data file ({SUFFIXES}, each also with .gz or .zst), got the suffix '.xlsx'; convert the"
                   " file, for example to .jsonl."),
    ],
)  # fmt: skip
def test_paths_without_data(name: str, expected: str) -> None:
    touch("train.jsonl", "empty/model.bin", "x.xlsx")
    with pytest.raises(DataError) as caught:
        expand([name])
    assert str(caught.value) == expected


def test_no_path_and_unknown_suffix() -> None:
    with pytest.raises(ValueError, match="Expected --data to name at least one file; got none"):
        expand([])
    with pytest.raises(DataError, match=r"^x.pdf: expected a data file .* got the suffix '.pdf'; convert it"):
        list(read_rows(Path("x.pdf"), BadRows("fail")))


def test_splits_by_name() -> None:
    names = [Path("d/train-00000-of-00002.parquet"), Path("d/test.jsonl"), Path("dev/part.csv")]
    assert list(splits_by_name(names).values()) == ["train", "test", "validation"]
    assert splits_by_name([Path("train.csv")]) == {}
    assert splits_by_name([Path("train.csv"), Path("notes.csv")]) == {}
    assert splits_by_name([*names, Path("notes.csv")]) == {}


def test_only_plain_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would be waited for, and a broken link must not be passed over: it was meant to be data."""
    monkeypatch.chdir(tmp_path)
    Path("loop").mkdir()
    Path("loop/self.jsonl").symlink_to("self.jsonl")
    Path("pipes").mkdir()
    os.mkfifo("pipes/a.jsonl")
    for name, what in (
        ("loop", "a link that leads nowhere"), ("pipes", "a pipe, a device or a folder"),
        ("pipes/a.jsonl", "a pipe, a device or a folder"), ("pipes/*.jsonl", "a pipe, a device or a folder"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"expected a file, got {what}"):
            expand([name])
    for name in ("", " "):
        with pytest.raises(UsageError, match="got an empty one"):
            expand([name])


def test_what_a_cleaning_leaves_beside_its_rows_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for name in ("train.jsonl", "test.jsonl", "data.changes.jsonl", "data.quarantine.jsonl", "report.json"):
        Path("d", name).write_text("{}")
    assert [path.name for path in expand(["d"])] == ["test.jsonl", "train.jsonl"]


def test_skip_never_passes_over_what_a_stray_quotation_mark_swallows() -> None:
    lines = [f"{i},answer {i}" for i in range(1000)]
    lines[500] = '"stray,answer'
    Path("x.csv").write_text("question,answer\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"^x\.csv:502: .* in a record that goes on to line 1001, as behind a stray quotation"):
        list(read_rows(Path("x.csv"), BadRows("skip")))


def test_skip_is_advised_only_where_every_problem_is_a_rows() -> None:
    Path("a.jsonl").write_text("{\n" * 30)
    Path("b.json").write_text("[1")
    bad = BadRows("fail")
    for name in ("a.jsonl", "b.json"):
        list(read_rows(Path(name), bad))
    with pytest.raises(DataError, match=r"got \d+ that are not; mend them:"):
        bad.finish(100)
