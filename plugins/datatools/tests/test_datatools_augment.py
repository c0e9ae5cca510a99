from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.records import folded
from lightning_ft_datatools.survey import check

from lightning_ft.errors import DataError, UsageError

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch

WORDS = ("river", "stone", "window", "garden", "paper", "silver", "winter", "market", "engine", "letter", "bridge", "candle")
ASKED = "Write a poem about the river. It should rhyme."


def rows(number: int = 40, **further: Any) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {
            "instruction": f"Describe the {' '.join(draw.sample(WORDS, 6))}.",
            "input": f"Text {i}",
            "output": f"Answer {i}",
            **further,
        }
        for i in range(number)
    ]


def run(*words: str) -> list[dict[str, Any]]:
    """The rows that the command wrote."""
    assert main(["augment", *words, "--output", "out.jsonl"]) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]


def made(found: list[dict[str, Any]], way: str | None = None) -> list[dict[str, Any]]:
    return [row for row in found if "augmented" in row and way in (None, row["augmented"]["way"])]


FORMATS: dict[str, tuple[dict[str, Any], list[tuple[str | int, ...]]]] = {
    "instruct": ({"instruction": ASKED, "input": "Thames", "output": ASKED}, [("instruction",)]),
    "question": ({"question": ASKED, "answer": "x", "system": ASKED}, [("question",)]),
    "reasoning": ({"question": ASKED, "reasoning": "Hm.", "answer": "x"}, [("question",)]),
    "messages": (
        {"messages": [{"role": "system", "content": ASKED}, {"role": "user", "content": ASKED},
                      {"role": "assistant", "content": ASKED, "weight": 0.5}]}, [("messages", 1, "content")]),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "value": ASKED}]}, {"role": "assistant", "content": "x"}]},
        [("messages", 0, "content", 0, "value")]),
    "sharegpt": ({"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "x"}], "id": 7},
                 [("conversations", 0, "value")]),
    "preference": ({"prompt": ASKED, "chosen": "x", "rejected": ASKED}, [("prompt",)]),
    "pair of turns": ({"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt", "value": ASKED},
                       "rejected": {"from": "gpt", "value": "y"}}, [("conversations", 0, "value")]),
    "pair of chats": ({name: [{"role": "user", "content": ASKED}, {"role": "assistant", "content": name}]
                       for name in ("chosen", "rejected")}, [("rejected", 0, "content"), ("chosen", 0, "content")]),
    "unpaired": ({"prompt": ASKED, "completion": ASKED, "label": True}, [("prompt",)]),
    "classify": ({"text": ASKED, "label": "poem"}, [("text",)]),
    "instances": ({"instruction": ASKED, "instances": [{"input": "a", "output": "b"}, {"input": "", "output": "d"}]},
                  [("instruction",)]),
    "tree": ({"message_tree_id": "t", "prompt": {"text": ASKED, "role": "prompter", "replies": [
        {"text": ASKED, "role": "assistant", "replies": []}]}}, [("prompt", "text")]),
}  # fmt: skip
"""A row of each format and the places of its prompt; other columns and turns may read the same."""


@pytest.mark.parametrize("name", FORMATS)
def test_only_the_prompt_changes_and_the_format_stays(scratch: Scratch, name: str) -> None:
    row, places = FORMATS[name]
    scratch.write("rows.jsonl", [row])
    original, *copies = run("rows.jsonl", "--rephrase", "templates", "--noise", "typo,case,space", "--share", "1")
    group = original.pop("group")
    assert original == row
    assert [copy.pop("augmented")["way"] for copy in copies] == ["templates", "typo", "case", "space"]
    for found in copies:
        assert found.pop("group") == group
        new: set[str] = set()
        for *above, last in places:
            part: Any = found
            for key in above:
                part = part[key]
            new.add(part[last])
            part[last] = ASKED
        assert len(new) == 1
        assert ASKED not in new
        assert found == row


def test_a_text_in_a_layout_keeps_its_layout(scratch: Scratch) -> None:
    text = "### Instruction:\nName the capital of France.\n\n### Response:\nParis</s>"
    scratch.write("rows.jsonl", [{"text": text}])
    found = made(run("rows.jsonl", "--task", "templated", "--rephrase", "templates", "--noise", "typo", "--share", "1"))
    assert len(found) == 2
    for row in found:
        assert re.fullmatch(r"### Instruction:\n(?!Name the capital of France\.\n).+\n\n### Response:\nParis</s>", row["text"])


def test_all_turns_of_the_user_change_and_no_other(scratch: Scratch) -> None:
    chat = [
        ("user", "Where is my parcel?"),
        ("assistant", "Which parcel?"),
        ("user", "The parcel of Monday."),
        ("assistant", "Here."),
    ]
    scratch.write("rows.jsonl", [{"messages": [{"role": role, "content": text} for role, text in chat]}])
    (copy,) = made(run("rows.jsonl", "--noise", "case", "--noise_rate", "1", "--share", "1"))
    changed = [new["content"] != text for new, (_, text) in zip(copy["messages"], chat, strict=True)]
    assert changed == [True, False, True, False]


def test_provenance_and_counts(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("rows.jsonl", rows())
    words = ("rows.jsonl", "--rephrase", "templates", "--noise", "typo", "--noise_rate", "0.1", "--copies", "2", "--seed", "5")
    found = run(*words)
    out = capsys.readouterr().out
    assert len(found) == 40 + 2 * 2 * 20, "half of 40 rows, two ways, two copies"
    assert "40 rows read + 80 made = 120 rows: out.jsonl" in out
    assert re.search(r"templates +40 +0\n", out)
    assert "split first: lightning-ft data split" in out
    assert "column group: 20 rows" in out
    marks = [row["augmented"] for row in made(found, "typo")]
    assert {"from": marks[0]["from"], "way": "typo", "rate": 0.1, "seed": 5, "copy": 1} == marks[0]
    assert Counter(mark["copy"] for mark in marks) == {1: 20, 2: 20}
    for row in made(found):
        line = int(row["augmented"]["from"].removeprefix("rows.jsonl:"))
        assert rows()[line - 1]["output"] == row["output"]
    plain = [{key: value for key, value in row.items() if key != "group"} for row in found if "augmented" not in row]
    assert plain == rows(), "every row as it was, in its order"
    again = run(scratch.write("again.jsonl", found), "--noise", "space", "--share", "1")
    assert "80 rows are copies of an earlier call" in capsys.readouterr().out
    assert all(row["augmented"]["from"].startswith("again.jsonl") for row in made(again, "space"))
    assert len(made(again, "space")) == 40


def test_the_same_seed_gives_the_same_whatever_the_order(scratch: Scratch) -> None:
    def contents(values: list[dict[str, Any]], *words: str) -> set[str]:
        scratch.write("rows.jsonl", values)
        found = run("rows.jsonl", "--rephrase", "templates", "--noise", "typo,case,space", "--copies", "2", *words)
        return {json.dumps({**row, "augmented": {**row["augmented"], "from": ""}}, sort_keys=True) for row in made(found)}

    shuffled = rows()
    random.Random(7).shuffle(shuffled)
    first = contents(rows())
    written = Path("out.jsonl").read_bytes()
    assert contents(rows()) == first
    assert Path("out.jsonl").read_bytes() == written
    assert contents(shuffled) == first
    assert len(contents(rows(), "--seed", "1") & first) < len(first) / 4


def test_rows_do_not_depend_on_the_rows_beside_them(scratch: Scratch) -> None:
    def contents(values: list[dict[str, Any]]) -> dict[str, str]:
        scratch.write("rows.jsonl", values)
        found = made(run("rows.jsonl", "--noise", "typo", "--share", "1"))
        return {row["output"]: row["instruction"] for row in found}

    few = contents(rows()[10:15])
    assert len(few) == 5
    assert few.items() <= contents(rows()).items()


def test_held_out_rows_and_their_prompts_are_left_alone(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    values = [row | {"split": ("train", "dev", "test")[i % 3]} for i, row in enumerate(rows(30))]
    values[3] |= {key: values[1][key] for key in ("instruction", "input")}
    values[6]["instruction"], values[2]["instruction"] = "Name the river.", "Please name the river."
    values[2]["input"] = values[6]["input"]
    scratch.write("rows.jsonl", values)
    words = ("rows.jsonl", "--rephrase", "templates", "--share", "1", "--copies", "30")
    found = run(*words)
    out = capsys.readouterr().out
    assert "20 validation and test rows stay as they are" in out
    assert "1 training rows ask what a validation or test row asks" in out
    assert "1 asks what a validation or test row asks" in out, "the template 'Please ...' makes a test row's prompt"
    assert "split first" not in out
    kept = [row for row in found if "augmented" not in row]
    assert [row for row in kept if row["split"] != "train"] == [row for row in values if row["split"] != "train"]
    assert {row["split"] for row in made(found)} == {"train"}
    sources = {row["augmented"]["from"] for row in made(found)}
    assert sources == {f"rows.jsonl:{i + 1}" for i in range(0, 30, 3) if i != 3}
    asked = {folded(row["instruction"] + row["input"]) for row in values if row["split"] != "train"}
    assert asked.isdisjoint(folded(row["instruction"] + row["input"]) for row in made(found))


def test_files_that_are_named_after_splits_keep_them(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    scratch.write("data/train.jsonl", rows()[:20])
    scratch.write("data/test.jsonl", rows()[20:])
    found = run("data", "--noise", "typo", "--share", "1")
    assert Counter((row["split"], "augmented" in row) for row in found) == {
        ("train", False): 20, ("train", True): 20, ("test", False): 20,
    }  # fmt: skip
    assert "column split: by the names of the files" in capsys.readouterr().out


def test_splits_that_are_not_clear_are_refused(scratch: Scratch) -> None:
    scratch.write("rows.jsonl", [*rows(3, split="train"), *rows(1)])
    with pytest.raises(DataError, match=r"rows.jsonl:4: expected 'split'"):
        run("rows.jsonl", "--noise", "typo")
    scratch.write("rows.jsonl", rows(2, split="holdout"))
    with pytest.raises(DataError, match="'holdout'"):
        run("rows.jsonl", "--noise", "typo")


def test_data_split_keeps_a_row_and_its_copies_together(scratch: Scratch) -> None:
    values = rows(60)
    for number, row in enumerate(values[:30]):
        row["customer_id"] = f"customer {number}"
    scratch.write("rows.jsonl", values)
    found = run("rows.jsonl", "--rephrase", "templates", "--noise", "typo,case", "--noise_rate", "0.5", "--copies", "2")
    assert all(("group" in row) != ("customer_id" in row) for row in made(found))
    assert main(["split", "out.jsonl", "--output", "parts", "--split", "0.6,0.2,0.2"]) == 0
    place: dict[str, set[str]] = {}
    for part in ("train", "validation", "test"):
        for row in scratch.read(f"parts/{part}.jsonl"):
            place.setdefault(row["output"], set()).add(part)
    assert len(place) == 60
    assert {len(parts) for parts in place.values()} == {1}
    assert {part for parts in place.values() for part in parts} == {"train", "validation", "test"}


def test_copies_and_equal_rows_are_not_repeated(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("rows.jsonl", [{"question": "Where is it?", "answer": "There."}] * 3)
    found = run("rows.jsonl", "--noise", "case", "--copies", "40", "--share", "1")
    texts = [row["question"] for row in made(found)]
    assert len(texts) == len(set(texts)) < 40
    assert f"{40 - len(texts)} repeats a row" in capsys.readouterr().out
    assert len(found) == 3 + len(texts)


def test_a_rate_of_nought_makes_nothing_and_says_why(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("rows.jsonl", rows(4))
    assert run("rows.jsonl", "--noise", "typo", "--noise_rate", "0") == rows(4)
    assert "2 no slip was drawn" in capsys.readouterr().out


# --- wrong input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Expected --rephrase or --noise, got neither"),
        (("--noise", "typos"), "got 'typos'. Did you mean 'typo'?"),
        (("--rephrase", "template"), "got 'template'. Did you mean 'templates'?"),
        (("--noise", "typo", "--noise_rate", "1.5"), "from 0 to 1; got 1.5"),
        (("--noise", "typo", "--noise_rate", "nan"), "from 0 to 1; got nan"),
        (("--rephrase", "templates", "--noise_rate", "0.1"), "together with --noise"),
        (("--noise", "typo", "--share", "-1"), "Expected --share"),
        (("--noise", "typo", "--copies", "0"), "Expected --copies"),
        (("--rephrase", "local"), "Expected --rephrase_model NAME"),
        (("--rephrase", "local", "--rephrase_model", "nowhere"), "Expected --rephrase_model to be a model folder"),
        (("--rephrase", "templates", "--rephrase_model", "x"), "Expected --rephrase_model together with"),
        (("--noise", "typo", "--temperature", "1"), "Expected --temperature together with"),
        (("--rephrase", "http://u:p@host/v1", "--rephrase_model", "x"), "without user and password"),
        (("--rephrase", "http://a", "--rephrase", "local", "--rephrase_model", "x"), "to name one model"),
        (("--noise", "typo", "--nois", "typo"), "Did you mean '--noise'?"),
    ],
)
def test_options_that_do_not_fit(scratch: Scratch, words: tuple[str, ...], said: str) -> None:
    scratch.write("rows.jsonl", rows(2))
    with pytest.raises(UsageError) as caught:
        run("rows.jsonl", *words)
    assert said in str(caught.value)
    assert not Path("out.jsonl").exists()


def test_outputs_that_do_not_fit(scratch: Scratch) -> None:
    scratch.write("rows.jsonl", rows(2))
    for output, said in (("rows.jsonl", "which is read"), ("out.csv", "type out.jsonl"), ("no/out.jsonl", "mkdir -p 'no'")):
        with pytest.raises(UsageError, match=re.escape(said)):
            main(["augment", "rows.jsonl", "--noise", "typo", "--output", output])
    assert scratch.read("rows.jsonl") == rows(2)


def test_rows_without_a_prompt(scratch: Scratch) -> None:
    scratch.write("rows.jsonl", [{"text": "Once upon a time."}])
    with pytest.raises(UsageError, match=r"the task text finds none in rows.jsonl:1"):
        run("rows.jsonl", "--noise", "typo")
    scratch.write("rows.jsonl", [row | {"augmented": "yes"} for row in rows(2)])
    with pytest.raises(DataError, match=r"rows.jsonl:1: expected no column 'augmented'"):
        run("rows.jsonl", "--noise", "typo")


def test_data_check_takes_copies_for_no_duplicates(scratch: Scratch) -> None:
    words = [f"{word}{end}" for word in WORDS for end in ("", "s")]
    asked = [" ".join(random.Random(i).sample(words, 16)) for i in range(6)]
    scratch.write("rows.jsonl", [{"question": f"Tell me {text}?", "answer": "Well, it is so."} for text in asked])
    found = run("rows.jsonl", "--noise", "typo", "--noise_rate", "0.01", "--share", "1")
    assert len(made(found)) == 6
    assert "near_duplicate" not in check("out.jsonl").counts
    scratch.write("bare.jsonl", [{key: row[key] for key in ("question", "answer")} for row in found])
    assert check("bare.jsonl").counts["near_duplicate"] == 6, "without the marks they are"
