from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_ft.builtin import SFT, Full, Messages, RawText
from lightning_ft.data.collate import pad
from lightning_ft.testing.models import tiny_gpt2
from lightning_ft.types import Conversation, Encoded, Message, Text

USER = {"role": "user", "content": "hi"}


def test_messages_become_a_conversation() -> None:
    call = {"role": "gpt", "content": None, "tool_calls": [{"name": "f"}]}
    row = {
        "messages": [{"role": "human", "content": "a", "name": "Ann"}, call, {"role": "function", "content": "c", "weight": 2}],
        "tools": [{"name": "f"}],
        "source": "s",
    }
    assert Messages().format(row) == Conversation(
        (
            Message("user", "a", None, {"name": "Ann"}),
            Message("assistant", "", None, {"tool_calls": [{"name": "f"}]}),
            Message("tool", "c", 2.0),
        ),
        ({"name": "f"},),
        {"source": "s"},
    )


def test_contents_in_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "value": "b"}, " c"]
    row = {
        "messages": [{"role": "user", "content": parts, "loss_weight": 0.5}, {"role": "assistant", "content": [], "weight": 0}]
    }
    assert Messages().format(row).messages == (Message("user", "a b c", 0.5), Message("assistant", "", 0.0))  # type: ignore[union-attr]  # a conversation


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (None, "expected 'messages' to be a list of turns, got null"),
        ([], "expected 'messages' to be a list of turns, got an empty list"),
        ("hi", "expected 'messages' to be a list of turns, got a string"),
        (["hi"], "expected each turn to be an object with 'role' and 'content', got a string"),
        ([{"content": "hi"}], "expected 'role' to be one of human, user, gpt, "),
        ([{"role": "User", "content": "hi"}], "expected 'role' to be one of human, user, gpt, "),
        ([{"role": ["user"], "content": "hi"}], "expected 'role' to be one of human, user, gpt, "),
        ([{"role": "user"}], "expected 'content' to be text, got nothing"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "expected 'content' to be text or a list of text parts, got None as the text of a part",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "expected 'content' to be text or a list of text parts, got a part of type image_url",
        ),
        ([USER | {"loss_weight": -1}], "expected 'weight' to be a number of at least 0, got -1"),
        ([USER | {"weight": -1}], "expected 'weight' to be a number of at least 0, got -1"),
        ([USER | {"weight": True}], "expected 'weight' to be a number of at least 0, got True"),
        ([USER | {"weight": float("inf")}], "expected 'weight' to be a number of at least 0, got inf"),
        ([USER | {"weight": float("nan")}], "expected 'weight' to be a number of at least 0, got nan"),
    ],
)
def test_wrong_messages_say_what_was_expected(turns: Any, expected: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        Messages().format({"messages": turns})
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("tools", ["f", {"name": "f"}, [1]])
def test_wrong_tools_say_what_was_expected(tools: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected 'tools' to be a list of objects, got "):
        Messages().format({"messages": [USER], "tools": tools})


def test_raw_text() -> None:
    assert RawText().format({"text": "a", "id": 3}) == Text("a", {"id": 3})
    with pytest.raises(ValueError, match=r"^expected 'text' to be text, got a number$"):
        RawText().format({"text": 3})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"messages", "id"}, (True, False)),
        ({"text"}, (False, True)),
        ({"text", "label"}, (False, False)),
        ({"text", "intent"}, (False, False)),
        ({"prompt"}, (False, False)),
    ],
)
def test_columns_that_match(columns: set[str], expected: tuple[bool, bool]) -> None:
    assert (Messages.matches(frozenset(columns)), RawText.matches(frozenset(columns))) == expected


def test_full_trains_everything_and_is_its_own_merge() -> None:
    model = tiny_gpt2().requires_grad_(False)
    assert Full().attach(model, 10) is model
    assert all(p.requires_grad for p in model.parameters())
    assert Full().merge(model) is model
    state = {name: value.clone() for name, value in Full().trainable_state(model).items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    Full().load_trainable_state(model, state)
    assert all(torch.equal(p, state[name]) for name, p in model.named_parameters())


def test_sft_is_the_weighted_sum_over_supervised_tokens() -> None:
    """By hand: labels of row 0 train tokens 2, 3 (weight 1), of row 1 token 1 (weight 0.5); the first token never counts."""
    model = tiny_gpt2()
    ids = [[5, 6, 7, 8], [9, 10]]
    rows = [Encoded(ids[0], [-100, -100, 7, 8], "x:1"), Encoded(ids[1], [9, 10], "x:2", weight=0.5)]
    (term,) = SFT()(model, pad(rows, 0)).terms.values()
    first = model(torch.tensor([ids[0]])).logits[0].log_softmax(-1)
    second = model(torch.tensor([ids[1]])).logits[0].log_softmax(-1)
    expected = -(first[1, 7] + first[2, 8] + 0.5 * second[0, 10])
    torch.testing.assert_close(term.sum, expected)
    assert float(term.count) == 2.5
    assert (term.per, term.weight) == ("tokens", 1.0)
