"""No tool writes over what it reads, replaces a link or a device, or begins work that it could not write down."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.output import write

from lightning_ft.errors import DataError, UsageError

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch

ROWS: list[dict[str, Any]] = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(12)]
FILES = {
    "select": ("--count", "3", "--output"), "mix": ("--output",), "convert": ("--to", "messages", "--output"),
    "augment": ("--noise", "typo", "--output"), "review": ("--output",),
}  # fmt: skip


@pytest.fixture
def rows(scratch: Scratch) -> str:
    return str(scratch.write("rows.jsonl", ROWS))


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows.jsonl", "link.jsonl"])
@pytest.mark.parametrize("tool", FILES)
def test_the_file_that_is_read(rows: str, tool: str, name: str) -> None:
    before = Path(rows).read_bytes()
    Path("link.jsonl").symlink_to(rows)
    with pytest.raises(UsageError, match=r"Expected --output to name a new file, got '.*', which is read"):
        main([tool, rows, *FILES[tool], name])
    assert Path(rows).read_bytes() == before


@pytest.mark.parametrize("flag", ["--json", "--output", "--fix"])
def test_data_check(rows: str, flag: str) -> None:
    before = Path(rows).read_bytes()
    with pytest.raises(UsageError, match=f"Expected {flag} to name a new file, got 'rows.jsonl', which (is|was) read"):
        main(["check", rows, flag, rows])
    assert Path(rows).read_bytes() == before


def test_a_data_file_behind_a_json_that_was_to_print(rows: str, scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("other.jsonl", ROWS)
    before = Path(rows).read_bytes()
    with pytest.raises(UsageError, match=r"^Expected a name that ends in \.json behind --json, or none, which prints; got"):
        main(["check", "--json", rows, "other.jsonl"])
    assert Path(rows).read_bytes() == before
    assert main(["check", "other.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["other.jsonl"]


@pytest.mark.parametrize("tool", ["split", "prepare"])
def test_folders(scratch: Scratch, tool: str) -> None:
    scratch.write("train.jsonl", ROWS)
    before = Path("train.jsonl").read_bytes()
    for name, message in (
        (".", "got 'train.jsonl', which is read"), ("train.jsonl", "Expected --output to name a folder"),
        ("", "Expected --output to name a folder"), ("train.jsonl/a", "Expected --output to name a folder"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            main([tool, "train.jsonl", "--output", name])
    assert Path("train.jsonl").read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["train.jsonl"]


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    ours, theirs = pty.openpty()
    write(os.ttyname(theirs), "to the terminal")
    assert os.read(ours, 100) == b"to the terminal"


WRONG = [
    *(("--weights", value) for value in ("nan,1", "inf,1", "1e308,1e308")),
    ("--temperature", "nan"),
    ("--temperature", "inf"),
]


@pytest.mark.parametrize("words", WRONG)
def test_weights_that_are_no_numbers(scratch: Scratch, words: tuple[str, str]) -> None:
    scratch.write("a.jsonl", ROWS)
    scratch.write("b.jsonl", ROWS[:3])
    with pytest.raises(UsageError, match=r"Expected --(weights|temperature) to be"):
        main(["mix", "a.jsonl", "b.jsonl", *words, "--output", "out.jsonl"])
    with pytest.raises(UsageError, match="Expected --split to be 2 or 3 shares"):
        main(["split", "a.jsonl", "--split", "nan,nan", "--output", "parts"])


@pytest.mark.parametrize("shares", ["0.8,0.3", "1", "0.5,0.2,0.2,0.1", "nan,nan"])
@pytest.mark.parametrize("command", ["split", "prepare"])
def test_shares_that_are_none(scratch: Scratch, command: str, shares: str) -> None:
    scratch.write("a.jsonl", ROWS)
    with pytest.raises(UsageError, match=r"Expected --split to be 2 or 3 shares that add up to 1, as 0\.8,0\.1,0\.1; got "):
        main([command, "a.jsonl", "--split", shares, "--output", "parts"])
    assert not Path("parts").exists()


@pytest.mark.parametrize("command", ["check", "show"])
@pytest.mark.parametrize("length", ["0", "-3", "999999"])
def test_lengths_that_the_model_does_not_have(scratch: Scratch, command: str, length: str) -> None:
    scratch.write("a.jsonl", ROWS)
    with pytest.raises(UsageError, match=rf"Expected --max_length from 1 to \d+, the model's positions; got {length}\."):
        main([command, "a.jsonl", "--max_length", length])


def test_a_row_that_cannot_be_read_is_left_out_by_the_tools_own_flag(scratch: Scratch) -> None:
    Path("a.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"^a\.jsonl:2: .*; mend it, or leave it out with `data check --fix OUT`\.$"):
        main(["select", "a.jsonl", "--count", "1", "--output", "out.jsonl"])


@pytest.mark.parametrize(
    "words", [("split", "--output", "parts"), ("select", "--count", "3", "--output", "few.jsonl"), ("check",)]
)
def test_a_file_that_grows_while_it_is_read(rows: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_ft.data.sources import read_rows

    def growing(path: Path, bad: Any) -> Any:
        for row in read_rows(path, bad):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
            yield row

    monkeypatch.setattr("lightning_ft_datatools.reading.read_rows", growing)
    command, *rest = words
    with pytest.raises(DataError, match="expected the file to stay as it is while it is read"):
        main([command, rows, *rest])
    assert not Path("few.jsonl").exists()
