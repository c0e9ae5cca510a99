"""Models of the hub: downloaded by transformers from a server on this machine, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.testing.models import tiny_backbone_folder
from tests.hub_server import HubServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BASE = "acme/tiny"
SHORT = ("--precision", "fp32", "--max_new_tokens", 4)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run `lightning-ft WORDS` in a folder with `rows.jsonl` where the hub is ours; its exit code and all that it said."""
    place = tmp_path_factory.mktemp("hub")
    (place / "rows.jsonl").write_bytes(data.read_bytes())
    server = HubServer({}, {BASE: files_of(tiny_backbone_folder(place / "tiny"))})
    env = os.environ | {
        "HF_ENDPOINT": server.url, "HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "0",
        "LIGHTNING_FT_CACHE": str(place / "cache"),
    }  # fmt: skip

    def run(*words: object, **more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "lightning_ft", *map(str, words)]
        done = subprocess.run(command, env=env | more, cwd=place, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    yield run
    server.shutdown()
    server.server_close()


def metrics(log: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(log.strip().splitlines()[-1])["metrics"]
    return found


def evaluate(said: Callable[..., tuple[int, str]], model: str, **more: str) -> dict[str, Any]:
    code, log = said("evaluate", model, "--data", "rows.jsonl", "--metrics", "loss", "--json", "--precision", "fp32", **more)
    assert code == 0, log
    return metrics(log)


def test_a_model_is_downloaded_trained_and_evaluated_as_one_in_a_folder(said: Callable[..., tuple[int, str]]) -> None:
    base = evaluate(said, BASE)
    assert base == evaluate(said, "tiny")
    assert base == evaluate(said, BASE, HF_HUB_OFFLINE="1"), "what was downloaded is there without the network"
    short = ("--max_steps", 4, "--verdict_rows", 2, "--learning_rate", 0.01, *SHORT)
    code, log = said("fit", BASE, "--data", "rows.jsonl", "--output", "run", *short)
    assert code == 0, log
    tuned = evaluate(said, "run/final_model")
    assert tuned["loss"] < base["loss"]


def test_a_commit_that_the_hub_has_not(said: Callable[..., tuple[int, str]]) -> None:
    code, log = said("fit", BASE, "--data", "rows.jsonl", "--revision", "f" * 40, "--max_steps", 1)
    assert code == 2, log
    assert "lightning-ft: Expected " in log
    assert "Traceback" not in log


def test_a_model_that_the_hub_has_not(said: Callable[..., tuple[int, str]]) -> None:
    code, log = said("evaluate", "acme/none", "--data", "rows.jsonl")
    assert code == 2, log
    assert "acme/none" in log
    assert "Traceback" not in log
