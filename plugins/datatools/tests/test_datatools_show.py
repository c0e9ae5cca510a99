from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from lightning_ft_datatools import check
from lightning_ft_datatools.command import main
from lightning_ft_datatools.commands.parser import split_columns
from lightning_ft_datatools.drawing import Piece, draw, underlined
from lightning_ft_datatools.sides import sides

from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.errors import DataError, UsageError
from lightning_ft.testing.models import tiny_backbone_folder, tiny_tokenizer
from lightning_ft.types import IGNORE_INDEX, Conversation, Message, Text

ROWS = [{"Frage": f"Wo ist Paket {i}?", "answer": f"In der Stadt {i}."} for i in range(5)]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return "rows.jsonl"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["show", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_rows_are_shown_as_they_train(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, rows, "--columns.question", "Frage", "--rows", "2", "--start", "4", "--template", "tags")
    headings = [line for line in lines if line.startswith("rows.jsonl:")]
    assert [heading.split(":")[1].split()[0] for heading in headings] == ["4", "5"]
    assert "task instruct, template tags: " in headings[0]
    at = lines.index("<response>In der Stadt 3.</response><|eos|>")
    assert lines[at + 1] == " " * len("<response>") + "~" * len("In der Stadt 3.</response><|eos|>")
    assert lines[at - 1] == "<instruction>Wo ist Paket 3?</instruction>"
    assert [line.split()[0] for line in lines[-2:]] == ["context", "assistant"]
    assert lines[-1].endswith("100.0 %")


def test_what_would_be_cut_is_marked(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = shown(capsys, rows, "--columns.question", "Frage", "--rows", "1")
    tokens = int(next(line for line in whole if "tokens" in line).split(": ")[1].split()[0])
    cut = shown(capsys, rows, "--columns.question", "Frage", "--rows", "1", "--max_length", str(tokens - 3))
    assert f"{tokens - 3} tokens" in cut[0]
    assert "; 3 more are cut, 2 of them would train" in cut[0]
    marks = next(line for line in cut if set(line.strip()) == {"~", "x"})
    text = cut[cut.index(marks) - 1]
    assert len(marks) == len(text)
    assert not any(set(line.strip()) == {"x"} or "x" in line for line in whole if set(line.strip()) <= {"~", "x"} and line)


def test_the_shots_of_a_few_shot_task_are_shown(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    task = "{name: instruct, shots: 2}"
    lines = shown(capsys, rows, "--columns.question", "Frage", "--rows", "1", "--template", "tags", "--task", task)
    answers = [line for line in lines if line.startswith("<response>")]
    assert len(answers) == 3
    assert len(set(answers)) == 3
    assert answers[-1] == "<response>In der Stadt 0.</response><|eos|>"
    marked = [line for line, below in itertools.pairwise(lines) if below.strip() and set(below.strip()) == {"~"}]
    assert marked == answers[-1:]


def test_on_a_terminal_it_is_colour(rows: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = shown(capsys, rows, "--columns.question", "Frage", "--rows", "1")
    assert any("\x1b[1;32mIn der Stadt 0." in line for line in lines)
    assert any("\x1b[36m<|bos|>" in line for line in lines)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b[1;32m" in line for line in shown(capsys, rows, "--columns.question", "Frage", "--rows", "1"))


@pytest.mark.parametrize(
    "example",
    [
        Conversation((Message("user", "a\tb"), Message("assistant", "\u00fc \u6771\u4eac\n\nc ", weight=0.5))),
        Conversation((Message("system", " s "), Message("user", "q"), Message("assistant", "r"), Message("user", "t"),
                      Message("assistant", "<|start|>u"))),
        Text("  two\nlines \U0001f600"),
    ],
    ids=["unicode", "turns", "text"],
)  # fmt: skip
def test_the_pieces_are_the_text_and_their_mask_the_labels(example: Any) -> None:
    tokenizer = tiny_tokenizer()
    template = Template.resolve("auto", tokenizer)
    encoder, whole = Encoder(tokenizer, template, 12), Encoder(tokenizer, template, 1000)
    drawn = draw(encoder, whole, tokenizer, sides(example)[0], "f:1")
    assert "".join(piece.text for piece in drawn.pieces) == encoder.render_example(example).text
    full = whole.encode([example], ["f:1"])[0]
    trained = [token for token, label in zip(full.input_ids[1:], full.labels[1:], strict=True) if label != IGNORE_INDEX]
    marked = "".join(piece.text for piece in drawn.pieces if piece.trained)
    assert tokenizer(marked, add_special_tokens=False)["input_ids"] == trained
    kept = "".join(piece.text for piece in drawn.pieces if not piece.cut)
    assert tokenizer(kept, add_special_tokens=False)["input_ids"] == full.input_ids[:12]


HI, HO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [HI, HO, HI], "chosen": HO, "rejected": {"role": "assistant", "content": "Hm"}},
         [("chosen", "Ho</response><|eos|>"), ("rejected", "Hm</response><|eos|>")]),
        ({"prompt": "Hi", "completion": "Ho", "label": True}, [("liked", "Ho</response><|eos|>")]),
        ({"prompt": "Hi", "completion": "Ho", "label": False}, [("not liked", "Ho</response><|eos|>")]),
        ({"text": "Hi", "label": "greeting"}, [("class greeting", "greeting</response><|eos|>")]),
    ],
    ids=["preference", "liked", "not_liked", "class"],
)  # fmt: skip
def test_every_text_of_an_example_is_shown_with_what_trains_of_it(
    rows: str, capsys: pytest.CaptureFixture[str], row: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    Path(rows).write_text(json.dumps(row) + "\n")
    lines = shown(capsys, rows, "--template", "tags")
    headings = [number for number, line in enumerate(lines) if line.startswith("rows.jsonl:1  task ")]
    assert [lines[number].split(":")[1].rsplit(", ", 1)[1] for number in headings] == [name for name, _ in expected]
    for start, end, (_, trained) in zip(headings, [*headings[1:], len(lines)], expected, strict=True):
        marked = [(above, below) for above, below in itertools.pairwise(lines[start:end]) if set(below.strip()) == {"~"}]
        assert "".join(above[below.index("~") : len(below)] for above, below in marked) == trained


def test_marks_stand_below_wide_characters() -> None:
    pieces = [Piece("\u6771a\t", False, False, False), Piece("\u4eacb\nc", True, False, False), Piece("d", True, False, True)]
    assert list(underlined(pieces)) == ["\u6771a  \u4eacb", "     ~~~", "cd", "~x"]


def test_what_a_terminal_would_obey_is_shown() -> None:
    pieces = [Piece("a\x1b[31mb\u202e", False, False, False), Piece("c\rd", True, False, False)]
    assert list(underlined(pieces)) == ["a\\x1b[31mb\\u202ec\\rd", " " * 16 + "~~~~"]


def test_columns_in_both_spellings() -> None:
    words, columns = split_columns(["f", "--columns.a", "b", "--rows", "3", "--columns.c=d|e"])
    assert words == ["f", "--rows", "3"]
    assert columns == {"a": "b", "c": "d|e"}


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["shwo"], UsageError, "Expected a tool of `lightning-ft data --help`, got 'shwo'. Did you mean 'show'?"),
        (["show", "no.jsonl"], DataError, "no.jsonl: expected a file or folder"),
        (["show", "rows.jsonl"], DataError, "rows.jsonl: expected the columns of a task"),
        (["show", "rows.jsonl", "--task", "instrct"], UsageError, "Expected --task to be one of"),
        (["show", "rows.jsonl", "--task", "{name: instruct, sytem: x}"], UsageError, "Expected an option of task instruct"),
        (["show", "rows.jsonl", "--task", "instruct"], DataError, "rows.jsonl:1: expected a column 'instruction'"),
        (["show", "rows.jsonl", "--rows", "0"], UsageError, "Expected --rows to be at least 1; got 0."),
        (["show", "rows.jsonl", "--columns.question", "Frage", "--start", "6"], UsageError, "Expected --start to be at most 5"),
        (["show", "rows.jsonl", "--columns.question"], UsageError, "Expected a value after --columns.question; got none."),
        (["show", "rows.jsonl", "--columns.question", "Farge"], DataError, "rows.jsonl: expected the column 'Farge'"),
        (["show", "rows.jsonl", "--max_lenght", "3"], UsageError, "Did you mean '--max_length'?"),
        (["show", "rows.jsonl", "--columns.question", "Frage", "--model", "nowhere"], UsageError, "Expected --model to be"),
    ],
    ids=str,
)
def test_wrong_words_get_one_sentence(rows: str, words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        main(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_names_the_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "show" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "trained"),
    [({"messages": [HI, HO, HI], "chosen": HO, "rejected": HI | {"role": "assistant"}}, ["Ho</response>", "Hi</response>"]),
     ({"text": "Hi", "label": "greeting"}, ["greeting</response>"])],
    ids=["preference", "class"],
)  # fmt: skip
def test_the_check_counts_what_is_drawn(rows: str, row: dict[str, Any], trained: list[str]) -> None:
    """Of a pair both answers, without answers in its prompt; of a class its name."""
    from transformers import AutoTokenizer

    Path(rows).write_text((json.dumps(row) + "\n") * 2)
    model = str(tiny_backbone_folder(Path("model")))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in trained)
    report = check(rows, model=model, template="tags")
    assert report.lengths["supervised"] == 2 * tokens
    longest = report.lengths["percentiles"]["p100"]  # of one text, which max_length is for; all texts are as long here
    assert report.lengths["tokens"] == 2 * len(trained) * longest
