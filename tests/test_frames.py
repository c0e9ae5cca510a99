"""Rows put into a known frame come out exactly as rows rendered in full."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.data.dialect import Dialect
from lightning_ft.data.render import Rendered, Template
from lightning_ft.errors import UsageError
from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\\n' + m['content'] + '<|stop|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
CONTENTS = (
    "Kuxo.", "wemi jado", "7", "0.5", " outer blanks \n", "two\n\nlines", "<b>bold</b> & 'quoted' \"twice\"",
    "\u6f22\u5b57 \U0001f642", "x" * 5000, "<think>why</think>\n\nso",
    "[INST] inner", "user", "assistant", "True", "", "{{ messages }}", "</s>",
)  # fmt: skip
SYSTEMS = (None, "Besy.", "Zhoru.")


def conversations(seed: int, number: int) -> list[Conversation]:
    """Few shapes, many contents."""
    draw = random.Random(seed)
    chats = []
    for _ in range(number):
        turns = [Message(("user", "assistant")[i % 2], draw.choice(CONTENTS)) for i in range(draw.choice((2, 4)))]
        if (system := draw.choice(SYSTEMS)) is not None:
            turns.insert(0, Message("system", system))
        chats.append(Conversation(tuple(turns)))
    return chats


def outcome(template: Template, chat: Conversation) -> Rendered | str:
    try:
        return template.render(chat)
    except UsageError as error:
        return str(error)


def renderings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every use of a template."""
    made: list[str] = []
    render = Dialect._render

    def counted(self: Dialect, *given: Any) -> Any:
        made.append(self.name)
        return render(self, *given)

    monkeypatch.setattr(Dialect, "_render", counted)
    return made


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    tiny_tokenizer.add_special_tokens({"extra_special_tokens": ["<|start|>", "<|stop|>"]})
    return tiny_tokenizer


def test_rows_of_a_known_shape_are_not_rendered(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template, made = Template("plain", CHATML, tokenizer), renderings(monkeypatch)
    rows = [Conversation((Message("user", f"q{i}"), Message("assistant", f"a{i}"))) for i in range(200)]
    for row in rows[:16]:
        template.render(row)
    made.clear()
    rendered = [template.render(row) for row in rows[16:]]
    assert made == []
    assert rendered[-1].text == "<|start|>user\nq199<|stop|>\n<|start|>assistant\na199<|stop|>\n"
    assert [rendered[-1].text[span.start : span.end] for span in rendered[-1].spans] == ["a199<|stop|>"]


def test_weights_are_part_of_the_shape(tokenizer: Any) -> None:
    template = Template("plain", CHATML, tokenizer)
    for i in range(60):
        first = (Message("user", f"q{i}"), Message("assistant", f"a{i}", weight=(0.0, 0.5, 1.0)[i % 3]))
        turns = (*first, Message("user", "more", weight=float(i % 2)), Message("assistant", "b"))
        rendered = template.render(Conversation(turns))
        trained = [(rendered.text[span.start : span.end], span.weight) for span in rendered.spans]
        wanted = [(f"a{i}<|stop|>", turns[1].loss_weight), ("more<|stop|>", turns[2].loss_weight), ("b<|stop|>", 1.0)]
        assert trained == [part for part in wanted if part[1]]


@pytest.mark.parametrize("reads", [False, True])
def test_further_keys_of_turns(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """The task `instruct` gives every question as two keys, too; most templates do not look at them."""
    source = CHATML.replace("m['content'] +", "(m['instruction'] or m['content']) +") if reads else CHATML
    template, made = Template("plain", source, tokenizer), renderings(monkeypatch)
    rows = [
        Conversation((Message("user", f"q{i}", extra={"instruction": f"i{i}", "input": ""}), Message("assistant", f"a{i}")))
        for i in range(60)
    ]
    for row in rows[:30]:
        template.render(row)
    made.clear()
    texts = [template.render(row).text for row in rows[30:]]
    assert bool(made) == reads
    question = "i59" if reads else "q59"
    assert texts[-1] == f"<|start|>user\n{question}<|stop|>\n<|start|>assistant\na59<|stop|>\n"


REACTS = {
    "length": "('!' if m['content'] | length > 300 else '')",
    "number": "('!' if m['content'] is number or m['content'][:1].isdigit() else '')",
    "lines": "('!' if m['content'].split('\\n') | length > 2 else '')",
    "another": "('!' if m['content'] == messages[0]['content'] else '')",
    "script": "('!' if m['content'][:1] > 'z' else '')",
    "last": "('!' if m['content'][-1:] == '.' else '')",
}


@pytest.mark.parametrize("way", REACTS)
def test_templates_that_react_to_contents_are_rendered_each_time(way: str, tokenizer: Any) -> None:
    source = CHATML.replace("m['content'] +", f"m['content'] + {REACTS[way]} +")
    used = Template(way, source, tokenizer)
    for chat in conversations(1, 200):
        messages = [message.as_dict() for message in chat.messages]
        text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
        assert used.render(chat).text == text


def test_a_row_that_comes_out_otherwise_ends_the_use_of_frames(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No probe finds a template that reacts to one word; the rows compared later do."""
    source = CHATML.replace("m['content'] +", "m['content'] + ('!' if m['content'] == 'odd' else '') +")
    template = Template("odd", source, tokenizer)
    odd = Conversation((Message("user", "q"), Message("assistant", "odd")))
    for i in range(256):
        template.render(Conversation((Message("user", "q"), Message("assistant", f"a{i}"))))
    made = renderings(monkeypatch)
    texts = [template.render(odd).text for _ in range(300)]
    wrong = sum(not text.endswith("odd!<|stop|>\n") for text in texts)
    assert wrong < 256
    assert len(made) >= 300 - wrong, "once found out, every row is rendered"


def test_real_templates_give_the_same_with_and_without(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    paths = sorted((shared_data / "chat_templates").glob("*/*.jinja"))
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizer_qwen2")
    special = re.compile(r"<\|[^<>|\s'\"]+\|>|<\uff5c[^<>\s'\"]+\uff5c>|<[a-z]+_of_[a-z]+>|\[/?INST\]")
    found = {marker for path in paths for marker in special.findall(path.read_text(encoding="utf-8"))}
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": sorted(found)})
    made, framed = renderings(monkeypatch), set()
    for number, path in enumerate(paths):
        used, plain = (Template.resolve(str(path), tokenizer) for _ in range(2))
        plain._locator._frames.wants = lambda shape: False  # type: ignore[method-assign]  # this one learns none
        for chat in conversations(number, 30):
            wanted = outcome(plain, chat)
            made.clear()
            assert outcome(used, chat) == wanted, path
            if not made and not isinstance(wanted, str):
                framed.add(path)
    assert len(framed) >= 100, f"{len(framed)} of {len(paths)} templates with frames"
