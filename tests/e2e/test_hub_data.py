"""Datasets of the hub: downloaded by `datasets` from a server on this machine, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.hub_server import HubServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Command = Any


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def questions(start: int, count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} plus {n}? Case {n}.", "answer": f"It is {2 * n}."} for n in range(start, start + count)]


CARD = b"""---
configs:
- config_name: sums
  data_files: [{split: train, path: sums/train.jsonl}, {split: test, path: sums/test.jsonl}]
- config_name: moods
  data_files: [{split: train, path: moods.jsonl}]
dataset_info:
- config_name: sums
  features: [{name: question, dtype: string}, {name: answer, dtype: string}]
- config_name: moods
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': sad, '1': glad}}}
---
"""
ODD = b"""---
configs:
- {config_name: default, data_files: [{split: train, path: a.jsonl}, {split: unsupervised, path: b.jsonl}]}
---
"""
REPOSITORIES = {
    "acme/faq": {"data/train.jsonl": lines(questions(0, 40)), "data/test.jsonl": lines(questions(100, 8))},
    "acme/odd": {"README.md": ODD, "a.jsonl": lines(questions(0, 9)), "b.jsonl": lines(questions(0, 9))},
    "acme/two": {
        "README.md": CARD, "sums/train.jsonl": lines(questions(0, 9)), "sums/test.jsonl": lines(questions(50, 5)),
        "moods.jsonl": lines([{"text": f"I am {n % 2}.", "label": -1 if n == 5 else n % 2} for n in range(6)]),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which the hub is ours."""
    server, home = HubServer(REPOSITORIES), tmp_path_factory.mktemp("hub")
    yield {
        "HF_ENDPOINT": server.url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0",
        "LIGHTNING_FT_CACHE": str(home / "cache"),
    }  # fmt: skip
    server.shutdown()
    server.server_close()


@pytest.fixture
def said(hub: dict[str, str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run `lightning-ft WORDS`; its exit code and all that it said."""

    def run(*words: object, **more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "lightning_ft", *map(str, words)]
        env = os.environ | hub | more
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    return run


def test_trains_on_a_dataset_and_again_without_the_network(said: Command, tmp_path: Path) -> None:
    words = ("fit", "--model", "embedded", "--data", "acme/faq", "--max_steps", 2, "--verdict_rows", 0, "--preflight", "false")
    code, log = said(*words, "--output", "run")
    assert code == 0, log
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert ledger["total"]["read"] == 48, ledger
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "- acme/faq\n" in config
    code, log = said(*words, "--output", "again", HF_HUB_OFFLINE="1")
    assert code == 0, log
    assert "data: encoded earlier" in log


def test_a_split_a_configuration_and_names_of_classes(said: Command) -> None:
    code, log = said("data", "show", "acme/faq:test")
    assert code == 0, log
    assert "Case 10" in log
    code, log = said("data", "check", "acme/two:sums:train")
    assert code in (0, 3), log
    assert "9 rows" in log
    code, log = said("data", "check", "acme/two:moods:train", "--task", "classify")
    assert code in (0, 3), log
    for shown in ("glad", "sad", "expected"):
        assert shown in log, log


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme/none:train", "the hub has none of that name"),
        ("acme/faq:nope", 'Unknown split "nope"'),
        ("acme/two:train", "Please pick one among the available configs: ['sums', 'moods']"),
        ("acme/two:nothing:train", "BuilderConfig 'nothing' not found"),
        ("acme/odd", "got train, unsupervised; name the one to train on, as acme/odd:train"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(said: Command, name: str, expected: str) -> None:
    code, log = said("fit", "--model", "embedded", "--data", name)
    assert code == 2, log
    last = log.strip().splitlines()[-1]
    assert last.startswith("lightning-ft: ")
    assert expected in last
    assert "Traceback" not in log
