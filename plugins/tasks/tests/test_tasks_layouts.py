"""What a template has written into one text comes back as the turns that it was, and nothing else is taken for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from jinja2.exceptions import TemplateError
from lightning_ft_tasks.layouts import layout_of, parts_of
from lightning_ft_tasks.templated import Templated

from lightning_ft.data.render import Template
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from pathlib import Path

TURNS = [
    ("system", "Be brief."), ("user", "Wo ist <input> in HTML?"), ("assistant", "Ein Feld: <input>.\n\nMehr nicht."),
    ("user", "Danke \u6771"), ("assistant", "Gern."),
]  # fmt: skip


def conversation(turns: list[tuple[str, str]]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns))


def turns_of(text: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in Templated().format({"text": text}).messages]


@pytest.mark.parametrize("name", ["alpaca", "tags"])
@pytest.mark.parametrize("first", [0, 1], ids=["system", "user"])
def test_what_the_own_templates_write_comes_back(name: str, first: int) -> None:
    template = Template.resolve(name, tiny_tokenizer())
    rendered = template.render(conversation(TURNS[first:])).text.replace("<|stop|>", "</s>")
    assert turns_of(rendered) == TURNS[first:]
    again = Conversation(Templated().format({"text": rendered}).messages)
    assert template.render(again).text.replace("<|stop|>", "</s>") == rendered


def test_what_real_chat_templates_write_comes_back(shared_data: Path) -> None:
    """Of every template that writes one of the layouts, but for white space at the ends of turns."""
    met: dict[str, int] = {}
    refused: set[str] = set()
    for path in sorted((shared_data / "chat_templates").rglob("*.jinja")):
        tokenizer: Any = tiny_tokenizer()
        tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        try:
            text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in TURNS[1:]], tokenize=False)
        except TemplateError:  # its contents are lists of parts
            continue
        layout = layout_of(text)
        if layout is None:
            continue
        try:
            found = parts_of(text, layout)
        except ValueError:
            refused.add(path.stem.removesuffix("_training"))
            continue
        parts = [(role, re.sub(r"<think>\s*</think>", "", body).strip()) for role, body in found]
        assert [part for part in parts if part[0] != "system"] == TURNS[1:], path
        met[layout.name] = met.get(layout.name, 0) + 1
    assert set(met) >= {"ChatML", "Llama 2", "Llama 3", "Gemma", "Zephyr", "Vicuna"}
    assert sum(met.values()) > 90
    assert refused == {"glm4moe"}  # which closes no turn


@pytest.mark.parametrize(
    "text",
    [
        "", "Some words.", "### Instruction:\nDo it.", "A text on <|im_start|>user\n and what follows.",
        "see ### Instruction: and ### Response: in a line", "<response>x</response>", "User: a\nAssistant: b",
    ],
)  # fmt: skip
def test_other_texts_are_no_layout(text: str) -> None:
    assert layout_of(text) is None
    assert not Templated.recognises({"text": text})
    assert not Templated.recognises({"text": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<|im_start|>user\nA<|im_start|>assistant\nB<|im_end|>", "expected the part '<|im_start|>user' to be closed, got the"),
        ("<|im_start|>user\nA<|im_end|>lost<|im_start|>assistant\nB<|im_end|>", "expected nothing between the parts of the"),
        (
            "<instruction>A</instruction><response>B</response> and C",
            "expected nothing between the parts of the layout, got 'and C'",
        ),
        ("<input>A</input><instruction>B</instruction><response>C</response>", "expected an input below its instruction"),
        ("### Response:\nA\n### Instruction:\nB", "expected a turn of the user before the first one of the assistant"),
        ("Some words.", "expected 'text' in one of the layouts alpaca, tags, ChatML, Llama 3, Gemma"),
    ],
)
def test_what_would_be_lost_or_misread_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Templated().format({"text": text})


def test_an_answer_that_is_not_closed_goes_to_the_end() -> None:
    assert turns_of("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB") == [("user", "A"), ("assistant", "B")]


def test_words_before_the_first_turn_are_the_systems() -> None:
    text = "A chat.\n\nUSER: Hello ASSISTANT: Good day.</s>USER: Bye ASSISTANT: Bye.</s>"
    assert turns_of(text) == [
        ("system", "A chat."), ("user", "Hello"), ("assistant", "Good day."), ("user", "Bye"), ("assistant", "Bye."),
    ]  # fmt: skip
