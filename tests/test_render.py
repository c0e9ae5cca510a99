from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

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


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    tiny_tokenizer.add_special_tokens({"extra_special_tokens": ["<|start|>", "<|end|>", "<|user|>"]})
    return tiny_tokenizer


def chat(*contents: str, system: str | None = None, **options: Any) -> Conversation:
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Conversation(tuple([Message("system", system)] if system else []) + tuple(turns), **options)


def trained(rendered: Rendered) -> list[str]:
    return [rendered.text[span.start : span.end] for span in rendered.spans]


def real(tokenizer: Any, template: Template, conversation: Conversation) -> str:
    messages = [message.as_dict() for message in conversation.messages]
    return str(tokenizer.apply_chat_template(messages, chat_template=template.source, tokenize=False))


def drawn(rendered: Rendered) -> str:
    """The text with the trained parts in braces."""
    out, at = "", 0
    for span in rendered.spans:
        out += rendered.text[at : span.start] + "{" + rendered.text[span.start : span.end] + "}"
        at = span.end
    return out + rendered.text[at:]


def test_alpaca_in_full(tokenizer: Any) -> None:
    template = Template.resolve("alpaca", tokenizer)
    first = Message("user", "Add. 1 2", extra={"instruction": "Add.", "input": "1 2"})
    conversation = Conversation((first, Message("assistant", "3"), Message("user", "And?"), Message("assistant", "4")))
    assert drawn(template.render(conversation)) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n{3<|stop|>}\n\n"
        "### Instruction:\nAnd?\n\n### Response:\n{4<|stop|>}"
    )
    assert drawn(template.render(chat("Hi", "Ho"))) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHi\n\n### Response:\n{Ho<|stop|>}"
    )
    assert template.prompt(chat("Hi", system="Be brief.").messages) == "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n"


def test_tags_in_full(tokenizer: Any) -> None:
    template = Template.resolve("tags", tokenizer)
    first = Message("user", "Add. 1 2", extra={"instruction": "Add.", "input": "1 2"})
    conversation = Conversation((first, Message("assistant", "3"), Message("user", "And?"), Message("assistant", "4")))
    assert drawn(template.render(conversation)) == (
        "<instruction>Add.</instruction>\n<input>1 2</input>\n<response>{3</response><|stop|>}\n"
        "<instruction>And?</instruction>\n<response>{4</response><|stop|>}"
    )
    assert template.prompt(conversation.messages[:1]).endswith("</input>\n<response>")


@pytest.mark.parametrize("name", ["alpaca", "tags", "chat"])
def test_text_and_marks_are_those_of_the_tokenizer(name: str, tokenizer: Any) -> None:
    template = Template.resolve(name, tokenizer)
    template.install(tokenizer)
    for conversation in (chat("a", "b", "c", "d"), chat("a", " b\n", system="s"), chat("a")):
        rendered = template.render(conversation)
        assert rendered.text == real(tokenizer, template, conversation)
        assert Template.resolve("auto", tokenizer).render(conversation) == rendered  # what the saved folder does


@pytest.mark.parametrize(
    "content", ["x", "  x \n", "assistant", "<|start|>", "[INST]", "\u00e4\U0001f600", "a\n\n### Response:\nb", "}"]
)
def test_contents_are_trained_wherever_they_look_like_the_template(content: str, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "chatml.jinja"
    path.write_text(CHATML)
    rendered = Template.resolve(str(path), tokenizer).render(chat(content, content, content, content))
    assert trained(rendered) == [content + "<|stop|>"] * 2
    assert rendered.text.count("<|start|>") == 4 + 4 * content.count("<|start|>")


def test_sentinel_characters_in_the_data_are_harmless(tokenizer: Any) -> None:
    template = Template("x", CHATML, tokenizer)
    for content in ("\ue5ee", "a\ue5eeb\uf0e1c", "\ue5ee\uf0e1\uebd3"):  # the last leaves none free: differences of prefixes
        assert trained(template.render(chat("q", content))) == [content + "<|stop|>"]


def test_stripping_templates(tokenizer: Any) -> None:
    template = Template("x", CHATML.replace("m['content']", "m['content'].strip()"), tokenizer)
    rendered = template.render(chat(" a ", "\n b \n", "c", " d"))
    assert drawn(rendered) == (
        "<|start|>user\na<|stop|>\n<|start|>assistant\n{b<|stop|>}\n<|start|>user\nc<|stop|>\n<|start|>assistant\n{d<|stop|>}\n"
    )


def test_thinking_that_the_template_moves_or_writes_is_trained_unless_the_prompt_has_it(tokenizer: Any) -> None:
    source = (
        "{% for m in messages %}{% set c = m['content'] %}{{ '<|start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}"
        "{% set t = c.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in c else '' %}"
        "{% set c = c.split('</think>')[-1].strip() %}{% if loop.last %}{{ '<think>\\n' + t + '\\n</think>\\n\\n' }}{% endif %}"
        "{% endif %}{{ c + '<|stop|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
    )
    template = Template("think", source, tokenizer)
    assert trained(template.render(chat("q", "<think>r</think> a", "q", "<think>s</think> b"))) == [
        "a<|stop|>",
        "<think>\ns\n</think>\n\nb<|stop|>",
    ]
    assert trained(template.render(chat("q", "b"))) == ["<think>\n\n</think>\n\nb<|stop|>"]
    prompted = Template(
        "think", source.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"), tokenizer
    )
    assert trained(prompted.render(chat("q", "a", "q", "b"))) == ["a<|stop|>", "\n</think>\n\nb<|stop|>"]


def test_stop_token_at_the_start_of_the_next_turn_is_trained(tokenizer: Any) -> None:
    source = (
        "{% for m in messages %}{% if not loop.first %}{{ '<|end|>' }}{% endif %}{{ m['role'] + ': ' + m['content'] + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|end|>assistant: ' }}{% endif %}"
    )
    template = Template("late", source, tokenizer)
    assert trained(template.render(chat("q", "a", "q", "b"))) == ["a\n<|end|>", "b\n<|stop|>"]
    assert template.stop_tokens(tokenizer) == tuple(tokenizer.convert_tokens_to_ids(["<|stop|>", "<|end|>"]))


def test_end_of_text_is_appended_only_where_no_token_closes_the_last_answer(tokenizer: Any) -> None:
    bare = Template("bare", "{% for m in messages %}{{ '\\n' + m['role'] + ': ' + m['content'] }}{% endfor %}", tokenizer)
    assert drawn(bare.render(chat("q", "a", "q", "b"))) == "\nuser: q\nassistant:{ a}\nuser: q\nassistant:{ b<|stop|>}"
    assert bare.render(chat("q", "a", "q")).text == "\nuser: q\nassistant: a\nuser: q"
    # The template opens no answer by itself, so the prompt has to: else the model would be asked to name its own role.
    assert bare.prompt(chat("q").messages) == "\nuser: q\nassistant:"
    assert drawn(Template("x", CHATML, tokenizer).render(chat("q", "a"))).endswith("{a<|stop|>}\n")


def test_weights_choose_the_turns(tokenizer: Any) -> None:
    messages = (Message("user", "u", 0.5), Message("assistant", "a", 0.0), Message("user", "v"), Message("assistant", "b", 2.0))
    rendered = Template("x", CHATML, tokenizer).render(Conversation(messages))
    assert trained(rendered) == ["u<|stop|>", "b<|stop|>"]
    assert [(span.role, span.weight) for span in rendered.spans] == [("user", 0.5), ("assistant", 2.0)]


def test_tool_calls_belong_to_the_turn(tokenizer: Any) -> None:
    source = (
        "{% for m in messages %}{{ '<|start|>' + m['role'] + '\\n' + (m['content'] or '') }}"
        "{% for call in m['tool_calls'] or [] %}{{ '<call>' + call['name'] + '</call>' }}{% endfor %}"
        "{{ '<|stop|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
    )
    template = Template("tools", source, tokenizer)
    asking = Message("assistant", "", extra={"tool_calls": [{"name": "f"}, {"name": "g"}]})
    call = "<call>f</call><call>g</call><|stop|>"
    for content in ("", "wait "):
        turns = (Message("user", "q"), replace(asking, content=content), Message("tool", "1"), Message("assistant", "a"))
        assert trained(template.render(Conversation(turns, ({"name": "f"},)))) == [content + call, "a<|stop|>"]
        assert trained(template.render(Conversation(turns[:2], ({"name": "f"},)))) == [content + call]


def test_a_template_that_leaves_tool_calls_out_is_refused(tokenizer: Any) -> None:
    """It would train an empty answer."""
    calls = [{"type": "function", "function": {"name": "lookup", "arguments": {}}}]
    turns = (Message("user", "x"), Message("assistant", "", extra={"tool_calls": calls}))
    with pytest.raises(UsageError, match="'tags' leaves out the call of 'lookup'"):
        Template.resolve("tags", tokenizer).render(Conversation(turns))


def test_marks_that_hold_the_header_too_are_not_followed(tokenizer: Any) -> None:
    source = CHATML.replace("{{ '<|start|>' + m", "{% generation %}{{ '<|start|>' + m").replace(
        "\\n' }}{% endfor", "\\n' }}{% endgeneration %}{% endfor"
    )
    assert "generation" in source
    assert trained(Template("x", source, tokenizer).render(chat("q", "a"))) == ["a<|stop|>"]


REWRITING = {
    "m['content'].upper()": ["WORLD", "AGAIN"],
    "m['content'] | reverse": ["dlrow", "niaga"],
    "m['content'][:2]": ["wo", "ag"],
}


@pytest.mark.parametrize("change", REWRITING)
def test_rewritten_contents_are_located_by_prefixes(change: str, tokenizer: Any) -> None:
    template = Template("odd", CHATML.replace("m['content']", f"({change})"), tokenizer)
    rendered = template.render(chat("hello", "world", "hello", "again"))
    assert trained(rendered) == [word + "<|stop|>" for word in REWRITING[change]]


def test_impossible_prefixes_are_refused_with_the_templates_name(tokenizer: Any) -> None:
    source = "{{ messages | length }}{% for m in messages %}{{ m['role'] + m['content'].upper() }}{% endfor %}"
    with pytest.raises(UsageError, match=r"message 2 \(assistant\).*template 'counts'.*--template alpaca"):
        Template("counts", source, tokenizer).render(chat("hello", "world", "hello", "again"))


def test_a_template_that_reacts_to_wrapped_contents_is_found_out(tokenizer: Any) -> None:
    source = CHATML.replace("m['content'] +", "m['content'] + ('!' if m['content'] | length > 5 else '') +")
    template = Template("length", source, tokenizer)
    for content in ("four", "a long one"):
        conversation = chat("q", content, "q", content)
        assert template.render(conversation).text == real(tokenizer, template, conversation)
        assert all(part.startswith(content) and part.endswith("<|stop|>") for part in trained(template.render(conversation)))


def test_refusals_of_a_template_are_said_in_its_words(tokenizer: Any) -> None:
    source = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    template = Template("strict", source, tokenizer)
    assert trained(template.render(chat("q", "a"))) == ["a<|stop|>"]
    with pytest.raises(UsageError, match=r"'strict'.*no system here"):
        template.render(chat("q", "a", system="s"))


def test_resolve(tokenizer: Any, tmp_path: Path) -> None:
    assert Template.resolve("auto", tokenizer).source == tokenizer.chat_template
    with pytest.raises(UsageError, match=r"got 'alpacka'\. Did you mean 'alpaca'"):
        Template.resolve("alpacka", tokenizer)
    tokenizer.chat_template = None
    assert Template.resolve("AUTO", tokenizer).name == "alpaca"
    with pytest.raises(UsageError, match="--template alpaca"):
        Template.resolve("chat", tokenizer)


def test_contents_as_lists_of_parts(tokenizer: Any) -> None:
    template = Template("parts", CHATML.replace("m['content']", "m['content'][0]['text']"), tokenizer)
    assert trained(template.render(chat("q", "a", "q", "b"))) == ["a<|stop|>", "b<|stop|>"]


def test_templates_can_be_pickled(tokenizer: Any) -> None:
    template = Template.resolve("auto", tokenizer)
    before = template.render(chat("q", "a"))
    assert pickle.loads(pickle.dumps(template)).render(chat("q", "a")) == before
