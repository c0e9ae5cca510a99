"""Every public data file is read by `--task auto`, or by it and one line that maps columns, down to the last row."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.data.badrows import BadRows
from lightning_ft.data.detect import detect_task
from lightning_ft.data.rename import Renaming
from lightning_ft.data.sources import read_rows
from lightning_ft.registry import registry

if TYPE_CHECKING:
    from pathlib import Path

FILES: dict[str, tuple[str, int]] = {
    "banking77/train.csv": ("classify", 10003),
    "clinc150/data_full.json": ("classify", 18200),
    "gsm8k/train.jsonl": ("instruct", 7473),
    "legalbench/legalbench.jsonl": ("instruct", 305),
    "litgpt_fixtures/dolly.json": ("instruct", 12),
    "litgpt_fixtures/longform_train.json": ("instruct", 17),
    "litgpt_fixtures/longform_val.json": ("instruct", 9),
    "llamafactory_demo/c4_demo.jsonl": ("text", 300),
    "llamafactory_demo/dpo_en_demo.json": ("preference", 300),
    "llamafactory_demo/dpo_zh_demo.json": ("preference", 300),
    "llamafactory_demo/glaive_toolcall_en_demo.json": ("chat", 300),
    "llamafactory_demo/identity.json": ("instruct", 91),
    "llamafactory_demo/kto_en_demo.json": ("unpaired", 300),
    "llamafactory_demo/v1_dpo_demo.jsonl": ("preference", 10),
    "llamafactory_demo/v1_sft_demo.jsonl": ("chat", 500),
    "llamafactory_demo/wiki_demo.txt": ("text", 518),
    "mbpp/mbpp.jsonl": ("instruct", 464),
    "medquad/medquad.jsonl": ("instruct", 13080),
    "mt_bench/dummy_conversation.json": ("chat", 500),
    "oasst_trees/trees.jsonl": ("tree", 60),
    "pubmedqa/pubmedqa.json": ("instruct", 500),
    "raschka_instruction/instruction-data.json": ("instruct", 1100),
    "raschka_instruction/instruction-data-with-preference.json": ("preference", 1100),
    "raschka_instruction/instruction-data-with-response.json": ("instruct", 110),
    "self_instruct/seed_tasks.jsonl": ("self_instruct", 175),
    "text_corpora/botchan_en.txt": ("text", 137),
    "text_corpora/the-verdict_en.txt": ("text", 11),
    "text_corpora/tinyshakespeare.txt": ("text", 609),
    "text_corpora/wagahaiwa_nekodearu_ja.txt": ("text", 659),
    "torchtune_assets/chat_tiny.json": ("chat", 1),
    "torchtune_assets/hh_rlhf_tiny.json": ("preference", 1),
    "torchtune_assets/instruct_tiny.json": ("instruct", 2),
    "torchtune_assets/stack_exchange_paired_tiny.json": ("preference", 25),
}
"""Task and rows."""
COLUMNS = {
    "legalbench/legalbench.jsonl": {"question": "text|bill_summary"},
    "mbpp/mbpp.jsonl": {"instruction": "text", "output": "code"},
    "pubmedqa/pubmedqa.json": {"question": "QUESTION", "answer": "LONG_ANSWER"},
    "torchtune_assets/stack_exchange_paired_tiny.json": {"chosen": "response_j", "rejected": "response_k"},
}
"""The one line that a file needs."""


def read(path: Path, columns: dict[str, str]) -> tuple[str, list[Any], int]:
    """Task, rows and number of examples."""
    bad = BadRows("fail")
    renaming = Renaming(columns)
    rows = [renaming(row) for row in read_rows(path, bad)]
    bad.finish(len(rows))
    renaming.check(path.name)
    entry = detect_task(rows, registry().tasks)
    task = entry.cls()
    return entry.name, rows, sum(task.format(part) is not None for row in rows for part in task.unfold(row.values))


@pytest.mark.parametrize("name", FILES)
def test_a_public_file_is_read_to_its_last_row(shared_data: Path, name: str) -> None:
    task, rows, examples = read(shared_data / name, COLUMNS.get(name, {}))
    assert (task, len(rows)) == FILES[name]
    if task not in ("tree", "self_instruct"):
        assert examples == len(rows)


def test_a_tree_gives_a_conversation_for_each_last_answer(shared_data: Path) -> None:
    path = shared_data / "oasst_trees" / "trees.jsonl"

    def last_answers(node: dict[str, Any]) -> int:
        below = sum(last_answers(reply) for reply in node.get("replies") or [])
        return below or int(node["role"] == "assistant")

    trees = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert read(path, {})[2] == sum(map(last_answers, trees)) > len(trees)
