from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.chat import Chat
from lightning_ft_tasks.instruct import Instruct

from lightning_ft.errors import UsageError
from lightning_ft.testing import check_task

if TYPE_CHECKING:
    from pathlib import Path

HELLO = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi."}]


def test_keeps_the_contract() -> None:
    check_task(Chat)
    check_task(Chat(system="Be brief.", train="last"))


def turns(task: Chat, row: dict[str, Any]) -> list[tuple[str, str, float]]:
    return [(m.role, m.content, m.loss_weight) for m in task.format(row).messages]


def test_sharegpt_and_openai_are_the_same_conversation() -> None:
    openai = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]
    expected = [("user", "Hi?", 0.0), ("assistant", "Hi.", 1.0)]
    assert turns(Chat(), {"conversations": HELLO}) == expected
    assert turns(Chat(), {"messages": openai}) == expected
    assert turns(Chat(), {"conversations": openai}) == expected


def test_every_assistant_turn_trains_or_only_the_last() -> None:
    row = {"conversations": HELLO + HELLO}
    assert [w for _, _, w in turns(Chat(), row)] == [0, 1, 0, 1]
    assert [w for _, _, w in turns(Chat(train="last"), row)] == [0, 0, 0, 1]


def test_weight_of_a_turn_counts() -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}  # fmt: skip
    assert [w for _, _, w in turns(Chat(), row)] == [0, 0, 0, 1]


def test_system_of_turns_before_column_before_option() -> None:
    own = [{"from": "system", "value": "own"}, *HELLO]
    assert turns(Chat(system="option"), {"conversations": own, "system": "column"})[0][1] == "own"
    assert turns(Chat(system="option"), {"conversations": HELLO, "system": "column"})[0] == ("system", "column", 0.0)
    assert turns(Chat(system="option"), {"conversations": HELLO})[0] == ("system", "option", 0.0)
    assert turns(Chat(), {"conversations": HELLO, "system": ""})[0][0] == "user"


def test_tools_and_meta() -> None:
    tool = {"name": "clock", "parameters": {}}
    for tools in ([tool], json.dumps([tool])):
        example = Chat().format({"conversations": HELLO, "tools": tools, "id": "x"})
        assert example.tools == (tool,)
        assert example.meta == {"id": "x"}
    assert Chat().format({"conversations": HELLO, "tools": ""}).tools == ()


def test_function_calls_are_the_assistants() -> None:
    row = {"conversations": [{"from": "human", "value": "Time?"}, {"from": "function_call", "value": "{}"},
                             {"from": "observation", "value": "noon"}, {"from": "gpt", "value": "Noon."}]}  # fmt: skip
    assert [role for role, _, _ in turns(Chat(), row)] == ["user", "assistant", "tool", "assistant"]


def test_matches() -> None:
    assert Chat.matches(frozenset({"messages", "id"}))
    assert Chat.matches(frozenset({"conversations", "tools"}))
    assert not Chat.matches(frozenset({"conversations", "chosen", "rejected"}))
    assert not Chat.matches(frozenset({"instruction", "output"}))
    assert Chat.precedence > Instruct.precedence


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1}, "expected a column 'messages' or 'conversations', got id"),
        ({"messages": "hi"}, "expected 'messages' to be a list of turns, got a string"),
        ({"messages": []}, "expected 'messages' to be a list of turns, got an empty list"),
        ({"messages": ["hi"]},
         "'messages', turn 1: expected each turn to be an object with 'role' and 'content', got a string"),
        ({"conversations": HELLO[:1]},
         "expected 'conversations' to have at least one assistant turn with text, got turns of user"),
        ({"conversations": [HELLO[0], {"from": "gpt", "value": " "}]},
         "expected 'conversations' to have at least one assistant turn with text, got turns of user, assistant"),
        ({"conversations": [*HELLO, {"from": "system", "value": "late"}]},
         "expected the system turn of 'conversations' to be the first, got it as turn 3"),
        ({"conversations": [{"from": "observation", "value": "noon"}, *HELLO]},
         "expected an assistant turn of 'conversations' before a tool's answer, got the tool first"),
        ({"conversations": [*HELLO, {"from": "gpt", "value": 3}]},
         "'conversations', turn 3: expected 'value' to be text, got a number"),
        ({"conversations": HELLO, "tools": "{"}, None),
        ({"conversations": HELLO, "tools": {"name": "clock"}},
         "expected 'tools' to be a list of objects, got {'name': 'clock'}"),
        ({"conversations": HELLO, "system": 3}, "expected 'system' to be text, got a number"),
    ],
)  # fmt: skip
def test_wrong_rows(row: dict[str, Any], message: str | None) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        Chat().format(row)
    if message is None:  # ends with the JSON parser's own words
        assert str(caught.value).startswith("expected 'tools' to be a list or its JSON text, got no JSON (")
    else:
        assert str(caught.value) == message


def test_unknown_role_is_named() -> None:
    with pytest.raises(ValueError, match=r"turn 2: expected 'from' to be one of .*, got 'robot'"):
        Chat().format({"conversations": [HELLO[0], {"from": "robot", "value": "Hi."}]})


def test_wrong_option() -> None:
    with pytest.raises(UsageError, match=r"Expected --task.train to be all or last; got 'first'\."):
        Chat(train="first")  # type: ignore[arg-type]  # the wrong value is the test


@pytest.mark.parametrize(
    ("name", "count"),
    [("mt_bench/dummy_conversation.json", 500), ("llamafactory_demo/glaive_toolcall_en_demo.json", 300),
     ("torchtune_assets/chat_tiny.json", 1)],
)  # fmt: skip
def test_real_files(shared_data: Path, name: str, count: int) -> None:
    rows = json.loads((shared_data / name).read_text())
    assert Chat.matches(frozenset(rows[0]))
    examples = [Chat().format(row) for row in rows]
    assert len(examples) >= count
    assert all(len(e.messages) >= len(row["conversations"]) for e, row in zip(examples, rows, strict=True))
