"""The loss mask of real chat templates, against a second way of finding it that shares no code with the first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.data.render import Template
from lightning_ft.errors import UsageError
from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MARKER = r"<[^<>\s]+>|\[[^\[\]\s]+\]"
DISAGREE: dict[str, str] = {}
"""Template -> why its mask is allowed to differ; at most five, and exactly these."""


def conversation(system: bool) -> tuple[Message, ...]:
    turns = (Message("user", "Kuxo."), Message("assistant", "Wemi."), Message("user", "Jado."), Message("assistant", "Zhoru."))
    return (Message("system", "Besy."), *turns) if system else turns


def shared_start(left: str, right: str) -> str:
    size = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[:size]


def independent(render: Callable[..., str], messages: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The text and the trained strings, from what each prefix of the conversation renders to.

    Start: where the generation prompt ends (its text after the last user's word, where a prefix is rendered differently
    from the whole). End: what follows the answer both in the middle and at the end of a conversation; where the two have
    nothing in common, the marker that stands there.
    """
    full = render(messages)
    words = [message["content"] for message in messages]
    strings = []
    last = full.rpartition(words[-1])[2]
    middle = full.partition(words[-3])[2].partition(words[-2])[0]
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, word, previous = render(messages[:i], add_generation_prompt=True), words[i], words[i - 1]
        if full.startswith(prompt):
            start = len(prompt)
        else:
            asked, there = (text.rpartition(previous)[2] for text in (prompt, full.partition(word)[0]))
            start = full.index(word) - len(there) + len(shared_start(asked, there))
        end = full.index(word) + len(word)
        after = last if i == len(messages) - 1 else middle
        both = re.match(rf"\s*((?:{MARKER})(?:\s*(?:{MARKER}))*)?", shared_start(last, middle))
        own = re.match(rf"\s*({MARKER})?", after)
        assert both
        assert own
        closing = both if both.group(1) else own
        strings.append(full[start : end + (closing.end() if closing.group(1) else 0)])
    return full, strings


@pytest.fixture(scope="session")
def family(shared_data: Path) -> tuple[Any, list[Path]]:
    """One real tokenizer that knows every template's markers as special tokens, as each model's own tokenizer does."""
    from transformers import AutoTokenizer

    paths = sorted((shared_data / "chat_templates").glob("*/*.jinja"))
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizer_qwen2")
    special = re.compile(r"<\|[^<>|\s'\"]+\|>|<\uff5c[^<>\s'\"]+\uff5c>|<[a-z]+_of_[a-z]+>|\[/?INST\]")
    found = {marker for path in paths for marker in special.findall(path.read_text(encoding="utf-8"))}
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": sorted(found)})
    return tokenizer, paths


def verdict(tokenizer: Any, path: Path) -> str:
    """Empty where both ways agree, else what differs."""
    template = Template.resolve(str(path), tokenizer)

    def render(messages: list[dict[str, Any]], **options: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, chat_template=template.source, tokenize=False, **options))

    def as_text(messages: list[dict[str, Any]], **options: bool) -> str:
        return render([m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages], **options)

    why = "neither text nor parts of text as contents show every message"
    for system in (True, False):
        messages = conversation(system)
        dicts = [m.as_dict() for m in messages]
        for way in (render, as_text):
            try:
                if not all(m["content"] in way(dicts) for m in dicts if m["role"] != "system"):
                    continue
                text, expected = independent(way, dicts)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                continue
            rendered = template.render(Conversation(messages))
            got = [rendered.text[s.start : s.end] for s in rendered.spans]
            tail = rendered.text[len(text) :]
            if not rendered.text.startswith(text) or tail not in ("", "</s>"):
                return f"text: {rendered.text!r} for {text!r}"
            if tail:
                expected[-1] = text[text.rindex(expected[-1]) :] + tail
            return "" if got == expected else f"{got} for {expected} in {text!r}"
    return f"refused: {why}"


def test_masks_of_real_templates_agree_with_prefix_differences(family: tuple[Any, list[Path]]) -> None:
    tokenizer, paths = family
    assert len(paths) == 135
    verdicts = {f"{path.parent.name}/{path.name}": verdict(tokenizer, path) for path in paths}
    wrong = {name: text for name, text in verdicts.items() if text}
    assert len(DISAGREE) <= 5
    assert set(wrong) == set(DISAGREE), "\n".join(f"{name}: {text}" for name, text in wrong.items())


AWKWARD = (" Sp ace \n", "<think>reason</think>\n\nanswer", "[/INST] inner [INST]", "<|im_end|>cut")
REFUSED = {("chujiezheng/falcon-instruct.jinja", AWKWARD[1])}
"""Falcon's template collapses empty lines within a content, so its place cannot be told: an error, not a guess."""


def test_awkward_answers_are_trained_whole_or_refused(family: tuple[Any, list[Path]]) -> None:
    tokenizer, paths = family
    refused = set()
    for path in paths:
        template = Template.resolve(str(path), tokenizer)
        for answer in AWKWARD:
            turns = (("user", "Kuxo."), ("assistant", answer), ("user", answer), ("assistant", answer))
            try:
                rendered = template.render(Conversation(tuple(Message(*turn) for turn in turns)))
            except UsageError:
                refused.add((f"{path.parent.name}/{path.name}", answer))
                continue
            for span in rendered.spans:
                trained = rendered.text[span.start : span.end]
                assert answer.split("</think>")[-1].strip() in trained, path
                assert "Kuxo" not in trained, path
            assert len(rendered.spans) == 2
    assert refused == REFUSED
