"""What a template has written into one text comes back as the turns that it was, and nothing else is taken for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from jinja2.exceptions import TemplateError
from lightning_ft_tasks.layouts import layout_of, parts_of
from lightning_ft_tasks.templated import Templated

from lightning_ft.builtin import RawText
from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import detect_task
from lightning_ft.data.render import Template
from lightning_ft.data.sources import read_rows
from lightning_ft.data.unfold import examples_of
from lightning_ft.errors import DataError
from lightning_ft.registry import registry
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
        if path.stem.removesuffix("_training") == "glm4moe":  # which closes no turn
            with pytest.raises(ValueError, match="to be closed"):
                parts_of(text, layout)
            continue
        found = parts_of(text, layout)
        parts = [(role, re.sub(r"<think>\s*</think>", "", body).strip()) for role, body in found]
        assert [part for part in parts if part[0] != "system"] == TURNS[1:], path
        met[layout.name] = met.get(layout.name, 0) + 1
    assert set(met) >= {"ChatML", "Llama 2", "Llama 3", "Gemma", "Zephyr", "Vicuna"}
    assert sum(met.values()) > 90


@pytest.mark.parametrize(
    "text",
    [
        "", "Some words.", "### Instruction:\nDo it.", "A text on <|im_start|>user\n and what follows.",
        "see ### Instruction: and ### Response: in a line",
        "A story. The USER: did something. Then the ASSISTANT: answered.", "<response>x</response>", "User: a\nAssistant: b",
    ],
)  # fmt: skip
def test_other_texts_are_no_layout(text: str) -> None:
    assert layout_of(text) is None
    assert not Templated.recognizes({"text": text})
    assert not Templated.recognizes({"text": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<|im_start|>user\nA<|im_start|>assistant\nB<|im_end|>", "expected the part '<|im_start|>user' to be closed, got the"),
        ("<|im_start|>user\nA<|im_end|>lost<|im_start|>assistant\nB<|im_end|>", "expected nothing between the parts of the"),
        (
            "<instruction>A</instruction><response>B</response> and C",
            "expected nothing between the parts of the layout, got 'and C'",
        ),
        ("<input>A</input><instruction>B</instruction><response>C</response>", "expected one input below each instruction"),
        ("### Response:\nA\n### Instruction:\nB", "expected a turn of the user before the first one of the assistant"),
        (
            "### Instruction:\nA\n### Input:\nlost\n### Input:\nkept\n### Response:\nB",
            "expected one input below each instruction",
        ),
        (
            "### Instruction:\nA\n### Response:\nB\n### Response:\nC",
            "expected turns of user and assistant in alternation, got user",
        ),
        ("### Instruction:\nA\n### Response:\nB</s>\n\nAnd more.", "expected the next part behind </s>, got 'And more.'"),
        ("[SYSTEM_PROMPT]S[/SYSTEM_PROMPT] lost</s>[INST]A[/INST]B", "got system, text between them, user, assistant"),
        ("[INST] [/INST] Hello", "expected text in every turn, got none in one of the user"),
        (
            "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n<|im_end|>",
            "expected text in every turn, got none in one of the assi",
        ),
        (
            "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n",
            "expected text in every turn, got none in one of the assistant",
        ),
        (
            "<s>[INST] How? [/INST] Put [INST] in front and [/INST] behind. </s>",
            "in alternation, got user, assistant, assistant",
        ),
        (
            "<|im_start|>user\nA<|im_end|><|im_end|>\n<|im_start|>assistant\nB<|im_end|>",
            "expected nothing between the parts of",
        ),
        ("Some words.", "expected 'text' in one of the layouts alpaca, tags, ChatML, Llama 3, Gemma"),
    ],
)
def test_what_would_be_lost_or_misread_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Templated().format({"text": text})


def test_an_answer_that_is_not_closed_goes_to_the_end() -> None:
    assert turns_of("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB") == [("user", "A"), ("assistant", "B")]
    llama = "<|start_header_id|>{}<|end_header_id|>\n\n{}"
    text = llama.format("user", "A<|eot_id|>") + llama.format("assistant", "B<|end_of_text|>")
    assert turns_of(text) == [("user", "A"), ("assistant", "B")]


def test_words_before_the_first_turn_are_the_systems() -> None:
    text = "A chat.\n\nUSER: Hello ASSISTANT: Good day.</s>USER: Bye ASSISTANT: Bye.</s>"
    assert turns_of(text) == [
        ("system", "A chat."), ("user", "Hello"), ("assistant", "Good day."), ("user", "Bye"), ("assistant", "Bye."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("<|im_start|>user\nTranslate.\n### Instruction:\nX\n### Response:\n<|im_end|>\n<|im_start|>assistant\nY<|im_end|>",
         "Translate.\n### Instruction:\nX\n### Response:\n", "Y"),
        ("[INST] A.\n### Instruction:\nX\n### Response:\n [/INST] Y", "A.\n### Instruction:\nX\n### Response:", "Y"),
        ("<|im_start|>user\nWhat is <instruction>A</instruction><response>B</response>?<|im_end|>\n"
         "<|im_start|>assistant\nY<|im_end|>",
         "What is <instruction>A</instruction><response>B</response>?", "Y"),
        ("### Instruction:\nWho says USER: Hi ASSISTANT: Ho\n### Response:\nY", "Who says USER: Hi ASSISTANT: Ho", "Y"),
    ],
    ids=["ChatML", "Llama 2", "tags", "alpaca"],
)  # fmt: skip
def test_a_layout_within_a_turn_is_its_text(text: str, question: str, answer: str) -> None:
    assert turns_of(text) == [("user", question), ("assistant", answer)]


def test_what_stands_beside_the_templates_own_words_is_the_systems() -> None:
    words = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert turns_of(f"<s>{words}\nBe brief.\n\n### Instruction:\nA\n\n### Response:\n    x = 1\n    y = 2<|im_end|></s>") == [
        ("system", "Be brief."), ("user", "A"), ("assistant", "    x = 1\n    y = 2"),
    ]  # fmt: skip


def test_one_token_closes_all_turns_of_a_text() -> None:
    assert turns_of("<|user|>\nA<|end|>\n<|assistant|>\n<s>old</s> new<|end|>\n") == [
        ("user", "A"),
        ("assistant", "<s>old</s> new"),
    ]


@pytest.mark.parametrize("name", ["ChatML", "alpaca", "Gemma"])
def test_line_ends_of_windows_are_line_ends(name: str) -> None:
    text = {
        "ChatML": "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB\nC<|im_end|>\n",
        "alpaca": "### Instruction:\nA\n\n### Response:\nB\nC\n\n### End",
        "Gemma": "<bos><start_of_turn>user\nA<end_of_turn>\n<start_of_turn>model\nB\nC<end_of_turn>\n",
    }[name]
    assert turns_of(text.replace("\n", "\r\n")) == turns_of(text) == [("user", "A"), ("assistant", "B\nC")]


def test_systems_texts_of_mistral_and_of_alpaca() -> None:
    text = "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]A[/INST]B</s>[INST]C[/INST]D</s>"
    turns = [("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    assert turns_of(text) == [("system", "Be brief."), *turns]
    text = "### System:\nBe brief.\n\n### Instruction:\nA\n\n### Response:\nB</s>"
    assert turns_of(text) == [("system", "Be brief."), *turns[:2]]


@pytest.mark.parametrize("layout", ["<|im_start|>{}\n{}<|im_end|>\n", "### {}:\n{}\n\n"], ids=["ChatML", "Human/Assistant"])
def test_pieces_of_a_plain_text_file_are_no_rows(tmp_path: Path, layout: str) -> None:
    """They begin and end anywhere: neither chosen nor, when named, read as turns."""
    roles = ("user", "assistant") if "im_start" in layout else ("Human", "Assistant")
    path = tmp_path / "x.txt"
    path.write_text("".join(layout.format(role, f"word {n} " * 30) for n in range(40) for role in roles), encoding="utf-8")
    rows = list(read_rows(path, BadRows("fail")))
    with pytest.raises(
        DataError, match=r"x\.txt: expected raw text, got what task templated reads, in pieces that may be cut any"
    ):
        detect_task(rows, registry().tasks)
    with pytest.raises(
        ValueError, match="expected a row for each of what the task reads, got a piece of a text that may be cut"
    ):
        examples_of(Templated(), rows[0])
    assert len(rows) == len([examples_of(RawText(), row) for row in rows]) > 5
