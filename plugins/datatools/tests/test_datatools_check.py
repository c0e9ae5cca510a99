from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.findings import KINDS

GOOD = (
    ("Where does the sun rise?", "It rises in the east, as the earth turns that way."),
    ("Name a fruit that is red.", "Strawberries are red when they are ripe enough to eat."),
    ("How many legs has a spider?", "A spider has eight legs, two more than any insect."),
    ("Who wrote Hamlet?", "William Shakespeare wrote it, probably around the year 1600."),
    ("What do bees make?", "They make honey from nectar, and wax for their combs."),
    ("Why is the sea salty?", "Rivers carry salts from rocks into it, and only the water evaporates."),
)


def row(question: str, answer: str, **further: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **further}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return name


def checked(name: str, *words: str) -> dict[str, Any]:
    """The JSON report of a file."""
    assert main(["check", name, "--json", "report.json", *words]) == 0
    report: dict[str, Any] = json.loads(Path("report.json").read_text(encoding="utf-8"))
    return report


def lines(report: dict[str, Any], kind: str) -> list[int]:
    return [issue["line"] for issue in report["issues"] if issue["kind"] == kind]


CASES: dict[str, tuple[list[Any], list[int]]] = {
    "unreadable": ([row(*GOOD[0]), "{broken", row(*GOOD[1])], [2]),
    "format": ([row(*GOOD[0]), {"question": 7, "answer": "x"}, row(*GOOD[1])], [2]),
    "empty_prompt": ([row(*GOOD[0]), row("  ", "An answer to nothing at all.")], [2]),
    "empty_answer": ([row(*GOOD[0]), row("Anything else?", "")], [2]),
    "vague_answer": ([row(*GOOD[0]), row("Who was she?", "I don't know."), row(*GOOD[1])], [2]),
    "short_answer": ([*(row(*pair) for pair in GOOD), row("What is the end?", "z")], [7]),
    "exact_duplicate": ([row(*GOOD[0]), row(*GOOD[1]), row("Where  does THE sun rise?", GOOD[0][1])], [3]),
    "near_duplicate": ([row(*GOOD[5]), row(*GOOD[1]), row("Why is the sea so salty?", GOOD[5][1])], [3]),
    "conflict": ([row(*GOOD[0]), row(*GOOD[1]), row(GOOD[0][0], "In the west, of course.")], [3]),
    "encoding": (
        [row(*GOOD[0]), row("Where is the caf\u00c3\u00a9?", "It is over there."), row("Bell\x07?", "Yes, it rings.")], [2, 3],
    ),
    "marker": ([row(*GOOD[0]), row("Say it.", "I say it.<|im_end|>"), row("Now?", "[INST] now, please.")], [2, 3]),
    "secret": ([row(*GOOD[0]), row("My key is AKIA" + "ABCDEFGHIJKLMNOP, is it good?", "It is.")], [2]),
    "email": ([row(*GOOD[0]), row("Who?", "Write to me@home.nl today."), row("Or?", "Or to a@example.com then.")], [2]),
    "split_leak": ([row(*GOOD[0], split="test"), row(*GOOD[1], split="train"), row(GOOD[0][0], "East.", split="train")], [3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_found_where_it_is_and_nowhere_else(here: Path, kind: str) -> None:
    rows, wanted = CASES[kind]
    assert lines(checked(write("rows.jsonl", rows)), kind) == wanted
    clean = checked(write("clean.jsonl", [row(*pair) for pair in GOOD]))
    assert clean["issues"] == []
    assert clean["is_valid"]


CHATS = {
    "ends with user": [("user", "a"), ("assistant", "b"), ("user", "c")],
    "begins with assistant": [("assistant", "b"), ("user", "c"), ("assistant", "d")],
    "second user turn in a row": [("user", "a"), ("user", "c"), ("assistant", "d")],
    "system turn": [("user", "a"), ("assistant", "b"), ("system", "s"), ("user", "c"), ("assistant", "d")],
    "": [(role, "s") for role in ("system", "user", "assistant", "tool", "assistant", "user", "assistant")],
}


@pytest.mark.parametrize("why", CHATS)
def test_unbalanced_turns(here: Path, why: str) -> None:
    turns = [{"role": role, "content": f"Some words {content}."} for role, content in CHATS[why]]
    good = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]
    report = checked(write("rows.jsonl", [{"messages": good}, {"messages": turns}]))
    found = [issue for issue in report["issues"] if issue["kind"] == "turns"]
    assert [issue["line"] for issue in found] == ([2] if why else [])
    assert why in (found[0]["detail"] if found else "")


def test_benchmarks_are_found_by_prompt_and_by_thirteen_words(here: Path) -> None:
    long = "On a cold morning in May the old man went down to the harbour to look for his boat"
    write("bench.jsonl", [row(GOOD[0][0], "x"), row(long, "y")])
    rows = [row("where does the sun rise", "East."), row(*GOOD[1]), row(f"Go on: {long}, and then?", "It was gone.")]
    report = checked(write("rows.jsonl", rows), "--against", "bench.jsonl")
    found = [(i["line"], i["other"]) for i in report["issues"] if i["kind"] == "benchmark_leak"]
    assert found == [(1, "bench.jsonl:1"), (3, "bench.jsonl:2")]


def test_lengths_and_what_is_cut(here: Path) -> None:
    rows = [row(*pair) for pair in GOOD] + [row("Tell all.", "word " * 300)]
    report = checked(write("rows.jsonl", rows), "--max_length", "64")
    lengths = report["lengths"]
    assert lines(report, "cut") == [7]
    assert lengths["cut_rows"] == 1
    assert 0 < lengths["cut_supervised"] <= lengths["cut_tokens"] < lengths["tokens"]
    assert sum(count for _, _, count in lengths["histogram"]) == 7
    assert lengths["percentiles"]["p100"] > 300


def test_strict_exits_with_3_for_errors_and_warnings_only(here: Path) -> None:
    write("rows.jsonl", CASES["empty_answer"][0])
    assert main(["check", "rows.jsonl", "--strict"]) == 3
    assert main(["check", "rows.jsonl"]) == 0
    write("clean.jsonl", [row(*pair) for pair in GOOD])
    assert main(["check", "clean.jsonl", "--strict"]) == 0
    write("long.jsonl", [*(row(*pair) for pair in GOOD), row("Tell all.", "word " * 300)])
    assert main(["check", "long.jsonl", "--strict", "--max_length", "64"]) == 0, "a note is no fault"


def test_fix_writes_what_is_left_what_went_and_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row(*GOOD[0]), row(*GOOD[0]), "{broken", row("Where is the caf\u00c3\u00a9?", "  It   is there.  "), row("Hm?", ""),
        row("Code?", "```\nif x:\n    y  =  1\n```"),
    ]  # fmt: skip
    write("rows.jsonl", rows)
    assert main(["check", "rows.jsonl", "--fix", "out.jsonl"]) == 0
    assert "out.jsonl (3 rows, 1 of them changed)" in capsys.readouterr().out
    left = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert left == [rows[0], row("Where is the caf\u00e9?", "It is there."), rows[5]]
    gone = [json.loads(line) for line in Path("out.quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(g["row"], g["reason"].split(":")[0]) for g in gone] == [
        ("rows.jsonl:2", "exact_duplicate"), ("rows.jsonl:5", "empty_answer"), ("rows.jsonl:3", "unreadable"),
    ]  # fmt: skip
    changes = [json.loads(line) for line in Path("out.changes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(c["row"], c["change"]) for c in changes} == {
        ("rows.jsonl:2", "removed"), ("rows.jsonl:5", "removed"), ("rows.jsonl:3", "removed"),
        ("rows.jsonl:4", "encoding repaired"), ("rows.jsonl:4", "white space"),
    }  # fmt: skip
    assert len(left) + len(gone) == len(rows)
    assert checked("out.jsonl")["issues"] == []


def test_the_page_and_the_terminal_say_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", [*CASES["secret"][0], row("<script>alert(1)</script> &", "")])
    assert main(["check", "rows.jsonl", "--output", "page.html"]) == 0
    out, page = capsys.readouterr().out, Path("page.html").read_text(encoding="utf-8")
    for text in ("rows.jsonl:2", "AWS access key", KINDS["empty_answer"].title):
        assert text in out
        assert text in page
    assert "AKIA" not in out + page, "a secret is not told again"
    assert "<script" not in page


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("missing.jsonl",), "missing.jsonl"), (("rows.jsonl", "--lower"), "--fix"),
        (("rows.jsonl", "--fix", "x.csv"), "x.jsonl"), (("rows.jsonl", "--fix", "rows.jsonl"), "another name"),
        (("rows.jsonl", "--shown", "-1"), "--shown"),
        (("rows.jsonl", "--fix", "no/where/x.jsonl"), "mkdir"), (("rows.jsonl", "--output", "no/x.html"), "mkdir"),
        (("rows.jsonl", "--json", "no/x.json"), "mkdir"), (("rows.jsonl", "--against", "none.jsonl"), "none.jsonl"),
        (("rows.jsonl", "--task", "nope"), "nope"), (("empty.jsonl",), "empty"),
    ],
)  # fmt: skip
def test_bad_calls_are_answered_in_a_sentence(here: Path, words: tuple[str, ...], wanted: str) -> None:
    from lightning_ft.errors import LightningFTError

    write("rows.jsonl", [row(*pair) for pair in GOOD])
    write("empty.jsonl", [])
    with pytest.raises(LightningFTError, match=wanted):
        main(["check", *words])
