"""Plain text that was written in one of the text templates has a row per sample; all other text has sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.render import Template
from lightning_ft.data.sources import read_rows
from lightning_ft.data.text import MAX_RECORD
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Message


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(content: str, bad: BadRows | None = None) -> list[tuple[int, str]]:
    Path("x.txt").write_text(content, encoding="utf-8")
    return [(row.line, row.values["text"]) for row in read_rows(Path("x.txt"), bad or BadRows("fail"))]


@pytest.mark.parametrize(("name", "system"), [("alpaca", None), ("tags", None), ("tags", "Be brief.\n\nAlways.")])
@pytest.mark.parametrize("between", ["\n", "\n\n", "\n\n\n  \n"], ids=["line", "blank", "blanks"])
def test_what_a_template_has_written_comes_back_row_by_row(name: str, between: str, system: str | None) -> None:
    template = Template.resolve(name, tiny_tokenizer())
    first = (Message("system", system),) if system else ()
    texts = [
        template.render(Conversation((*first, Message("user", f"Say {n}.\n\nNow."), Message("assistant", "a\n\n" * n)))).text
        for n in range(4)
    ]
    texts = [text.replace("<|stop|>", "</s>") for text in texts]
    found = rows(between + between.join(texts) + "\n")
    assert [text for _, text in found] == texts
    lines = Path("x.txt").read_text(encoding="utf-8").split("\n")
    assert [lines[number - 1] for number, _ in found] == [text.split("\n")[0] for text in texts]


def test_without_words_above_it_every_instruction_begins_a_row() -> None:
    one, two = "### Instruction:\nA\n\n### Input:\nB\n\n### Response:\nC", "### Instruction:\nD\n### Response:\nE"
    assert rows(f"{one}\n\n{two}\n") == [(1, one), (10, two)]


def test_a_sample_with_a_line_that_is_no_text_is_left_out_and_told() -> None:
    Path("x.txt").write_bytes(b"### Instruction:\nA\n### Response:\nb\xe4d\n\n### Instruction:\nB\n### Response:\nC\n")
    bad = BadRows("fail")
    (row,) = read_rows(Path("x.txt"), bad)
    assert (row.line, row.values["text"]) == (6, "### Instruction:\nB\n### Response:\nC")
    assert [(problem.line, problem.reason[:14]) for problem in bad.problems] == [(4, "expected UTF-8")]


def test_a_sample_without_end_is_an_error_and_the_next_one_is_read() -> None:
    long = "word " * 20_000 + "\n"
    bad = BadRows("fail")
    content = "### Instruction:\nA\n### Response:\n" + long * (MAX_RECORD // len(long) + 2) + "### Instruction:\nB\n"
    assert [text for _, text in rows(content, bad)] == ["### Instruction:\nB"]
    assert [(problem.line, problem.reason[:35]) for problem in bad.problems] == [(1, "expected a record of at most 8 MiB,")]


def test_tags_on_one_line_are_a_row_each() -> None:
    lines = [f"<system>S</system><instruction>A{n}</instruction><response>B</response></s>" for n in range(3)]
    assert rows("\n".join(lines)) == [(n + 1, line) for n, line in enumerate(lines)]
    assert [text for _, text in rows("\n".join(f"<s>{line}" for line in lines))] == [f"<s>{line}" for line in lines]


def test_every_instruction_is_a_row_also_of_one_conversation() -> None:
    one, two = ("### Instruction:\nA\n\n### Response:\nB</s>", "### Instruction:\nC\n\n### Response:\nD</s>")
    assert rows(f"{one}\n\n{two}") == [(1, one), (7, two)]


@pytest.mark.parametrize(
    "text",
    [
        "A page about formats.\n\n### Instruction:\nis a heading.\n\n### Instruction:\nagain.",
        "A page about formats.\n\n### Instruction:\nA\n\n### Response:\nB</s>\n\nAnd more about it.",
        "<system>\n<name>x</name>\n</system>", "Below is an instruction that describes a task. It is a sentence.",
        "USER: A\nASSISTANT: B",
    ],
)  # fmt: skip
def test_other_texts_stay_sections(text: str) -> None:
    Path("x.txt").write_text(text, encoding="utf-8")
    (row,) = read_rows(Path("x.txt"), BadRows("fail"))
    assert row.values["text"] == text
    assert row.section
