from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.converting import FORMATS, convert
from lightning_ft_datatools.mixing import mix

from lightning_ft.errors import DataError, UsageError
from lightning_ft.registry import registry

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch

ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Translate.", "input": "Haus", "output": "house", "id": 3},
    "question": {"question": "Why?", "answer": "Because.", "system": "Be brief."},
    "chat": {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"),
                                                                 ("assistant", "d"))]},
    "weighted": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]},
    "tools": {
        "messages": [{"role": "user", "content": "Time?"}, {"role": "assistant", "content": "noon"}],
        "tools": [{"name": "clock", "parameters": {}}],
    },
    "text": {"text": "Once upon a time."},
    "preference": {"prompt": "Greet.", "chosen": "Hello.", "rejected": "What?"},
    "unpaired": {"prompt": "Greet.", "completion": "What?", "label": False},
    "classify": {"text": "My card is gone.", "label": "lost_card"},
}  # fmt: skip
HELD = {
    "alpaca": {"messages", "sharegpt", "alpaca", "prompt_response", "question_answer"},
    "question": {"messages", "sharegpt", "alpaca", "prompt_response", "question_answer"},
    "chat": {"messages", "sharegpt"},
    "weighted": {"messages"},
    "tools": {"messages"},
    "text": {"text"},
    "preference": {"preference"},
    "unpaired": {"unpaired"},
    "classify": {"classify", "messages", "sharegpt", "alpaca", "prompt_response", "question_answer"},
}
TASKS = {"text": "text", "preference": "preference", "unpaired": "unpaired", "classify": "classify", "messages": "chat",
         "sharegpt": "chat"}  # fmt: skip
"""The task that reads a format; the others are `instruct`'s."""


def texts(row: dict[str, Any], task: str) -> Any:
    """What a model sees of a row, without how its parts were called."""
    example: Any = registry().tasks[task].cls().format(row)
    parts = ("messages", "prompt", "chosen", "rejected", "completion")
    turns = [[(m.role, m.content, m.loss_weight) for m in getattr(example, part, ())] for part in parts]
    return turns, [getattr(example, name, None) for name in ("text", "label", "desirable", "tools")]


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("to", FORMATS)
def test_what_a_format_can_hold_is_the_same_example_and_all_else_is_refused(scratch: Scratch, kind: str, to: str) -> None:
    name = scratch.write("rows.jsonl", [ROWS[kind]])
    if to not in HELD[kind]:
        with pytest.raises(DataError, match=r"rows\.jsonl:1: the format .* cannot hold"):
            convert([name], to)
        return
    (row,) = convert([name], to)
    original = {"alpaca": "instruct", "question": "instruct", "chat": "chat", "weighted": "chat", "tools": "chat"}.get(
        kind, kind
    )
    if kind == "classify" and to != "classify":
        assert [ROWS[kind]["text"], ROWS[kind]["label"]] == [turn[1] for turn in texts(row, TASKS.get(to, "instruct"))[0][0]]
    else:
        assert texts(row, TASKS.get(to, "instruct")) == texts(ROWS[kind], original)
    assert row.get("id") == ROWS[kind].get("id"), "further columns stay"
    assert convert([scratch.write("again.jsonl", [row])], to) == [row]


def test_from_the_command_line(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("rows.jsonl", [ROWS["alpaca"], ROWS["question"]])
    assert main(["convert", "rows.jsonl", "--to", "sharegpt", "--output", "out.jsonl"]) == 0
    assert "out.jsonl: 2 rows as sharegpt" in capsys.readouterr().out
    first = json.loads(Path("out.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["conversations"][0] == {"from": "human", "value": "Translate.\n\nHaus"}
    scratch.write("two.jsonl", [{"instruction": "2+2?", "output": "Two and two make four.", "answer": "4"}])
    with pytest.raises(DataError, match=r"two\.jsonl:1: .* cannot hold this row, because its further column 'answer' would be"):
        main(["convert", "two.jsonl", "--to", "question_answer", "--output", "none.jsonl"])
    with pytest.raises(UsageError, match="Did you mean 'sharegpt'"):
        main(["convert", "rows.jsonl", "--to", "sharegp", "--output", "out.jsonl"])
    scratch.write("mixed.jsonl", [ROWS["chat"], ROWS["chat"]])
    with pytest.raises(DataError, match=r"mixed\.jsonl:1"):
        main(["convert", "mixed.jsonl", "--to", "alpaca", "--output", "none.jsonl"])
    assert not Path("none.jsonl").exists()


def asks(scratch: Scratch, name: str, number: int) -> str:
    return scratch.write(f"{name}.jsonl", [{"question": f"{name} {i}?", "answer": "Yes."} for i in range(number)])


def test_shares_and_repetitions_of_a_mixture(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    names = [asks(scratch, "a", 10), asks(scratch, "b", 30)]
    mixed = mix(names, weights=[1, 1], count=50)
    assert mixed.counts == {"a.jsonl": (10, 25, 15), "b.jsonl": (30, 25, 0)}
    seen = Counter(row["messages"][0]["content"] for row in mixed.rows)
    assert {seen[f"a {i}?"] for i in range(10)} == {2, 3}
    assert Counter(row["source"] for row in mixed.rows) == {"a.jsonl": 25, "b.jsonl": 25}
    assert mix(names, weights=[1, 1], count=50).rows == mixed.rows
    assert mix(names, weights=[1, 1], count=50, seed=1).rows != mixed.rows
    assert mix(names).counts == {"a.jsonl": (10, 10, 0), "b.jsonl": (30, 30, 0)}
    even = mix(names, temperature=1e9, count=40).counts
    assert {name: taken for name, (_, taken, _) in even.items()} == {"a.jsonl": 20, "b.jsonl": 20}
    root = mix([asks(scratch, "c", 10), asks(scratch, "d", 40)], temperature=2, count=30).counts
    assert {name: taken for name, (_, taken, _) in root.items()} == {"c.jsonl": 10, "d.jsonl": 20}
    assert main(["mix", *names, "--weights", "3,1", "--count", "8", "--output", "out.jsonl"]) == 0
    assert "a.jsonl    10      6         0" in capsys.readouterr().out
    assert len(Path("out.jsonl").read_text(encoding="utf-8").splitlines()) == 8


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--weights", "1"), "2 shares"), (("--weights", "a,b"), "as 3,1"),
        (("--temperature", "2", "--weights", "1,1"), "one of"),
        (("--temperature", "0"), "above 0"), (("--count", "0"), "at least 1"), (("--weights=-1,2",), "at least 0"),
    ],
)  # fmt: skip
def test_bad_mixtures(scratch: Scratch, words: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        main(["mix", asks(scratch, "a", 3), asks(scratch, "b", 3), "--output", "out.jsonl", *words])
