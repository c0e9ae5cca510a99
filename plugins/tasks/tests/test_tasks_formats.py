"""One file of three rows for every format: which task it is, the exact examples, and the text with its trained parts.

What a row becomes is kept beside the file, `formats/NAME.txt`; `python plugins/tasks/tests/test_tasks_formats.py` writes
them anew, for the reader of the change to look at.
"""

from __future__ import annotations

import pprint
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import detect_task
from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.data.sources import read_rows
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Preference, Text, Unpaired

if TYPE_CHECKING:
    from lightning_ft.types import Example, Message

FORMATS = sorted(path for path in Path(__file__).with_name("formats").iterdir() if path.suffix != ".txt")
TASKS = {
    "alpaca": "instruct", "dolly": "instruct", "prompt_completion": "instruct", "question_answer": "instruct",
    "prompt_response": "instruct", "self_instruct": "self_instruct", "openai": "chat", "loss_weight": "chat",
    "sharegpt": "chat", "tools": "chat", "tree": "tree", "reasoning": "reasoning", "code": "code",
    "code_answers": "code", "text": "text",
    "preference_text": "preference", "preference_turns": "preference", "preference_lists": "preference",
    "unpaired": "unpaired", "classify": "classify", "templated": "templated", "layouts": "templated", "samples": "templated",
    "safety": "safety", "constrained": "constrained", "ifeval": "constrained", "domain": "domain",
}  # fmt: skip


TOOLS = """{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>
{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for call in m.tool_calls or [] %}<call>
{{- call.function | tojson }}</call>{% endfor %}<|stop|>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
"""A chat template that knows tools."""


def drawn(encoder: Encoder, example: Example) -> str:
    """The text of an example, what trains of it in double brackets, with its weight where that is not 1."""
    if isinstance(example, (Conversation, Text)):
        text, at = "", 0
        rendered = encoder.render_example(example)
        for span in rendered.spans:
            weight = "" if span.weight == 1 else f"{span.weight:g}*"
            text += f"{rendered.text[at : span.start]}{weight}[[{rendered.text[span.start : span.end]}]]"
            at = span.end
        return text + rendered.text[at:]
    if isinstance(example, Preference):
        parts = [(*example.prompt, *example.chosen), (*example.prompt, *example.rejected)]
        return "\n--- or\n".join(drawn(encoder, Conversation(with_last_alone(part))) for part in parts)
    if isinstance(example, Unpaired):
        return drawn(encoder, Conversation(with_last_alone((*example.prompt, *example.completion))))
    return f"{example.text}\n--- is\n[[{example.label}]]"


def with_last_alone(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns, of which only the last trains."""
    import dataclasses

    return (*(dataclasses.replace(message, weight=0.0) for message in messages[:-1]), messages[-1])


def account(path: Path) -> str:
    """Task, examples and drawn texts of a file."""
    bad = BadRows("fail")
    rows = list(read_rows(path, bad))
    bad.finish(len(rows))
    name = detect_task(rows, registry().tasks).name
    task = registry().tasks[name].cls()
    tokenizer = tiny_tokenizer()
    if path.stem == "tools":
        tokenizer.chat_template = TOOLS
    encoder = Encoder(tokenizer, Template.resolve("chat" if path.stem == "tools" else "tags", tokenizer), 512)
    lines = [f"task {name}"]
    for number, row in enumerate(rows, 1):
        parts = task.unfold(row.values)
        for part, values in enumerate(parts, 1):
            example = task.format(values)
            place = f"row {number}" if len(parts) == 1 else f"row {number}, {part} of {len(parts)}"
            lines += ["", f"## {place}", pprint.pformat(example, width=120, sort_dicts=False), "", drawn(encoder, example)]
    return ("\n".join(lines) + "\n").encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: path.stem)
def test_a_format_is_read_as_it_was(path: Path) -> None:
    found = account(path)
    assert found.splitlines()[0] == f"task {TASKS[path.stem]}"
    assert found.count("## row 1") >= 1
    assert "## row 3" in found
    assert found == path.with_suffix(".txt").read_text(encoding="utf-8")


def test_every_format_has_its_file() -> None:
    assert {path.stem for path in FORMATS} == set(TASKS)
    assert set(TASKS.values()) >= set(registry().tasks) - {"messages", "custom"}, "custom is never found by columns"


if __name__ == "__main__":
    for file in FORMATS:
        file.with_suffix(".txt").write_text(account(file), encoding="utf-8")
