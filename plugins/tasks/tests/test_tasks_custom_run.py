"""The task `custom` from a YAML file alone: trained, judged by its own metrics, and found again by `evaluate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import yaml

from lightning_ft.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TASK = """
task:
  name: custom
  user: "Translate to {language}: {text}"
  assistant: "{translation}"
  references: other_translations
  metrics: [token_f1, rougeL]
"""


def test_templates_and_metrics_come_from_a_yaml_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["hello", "good day", "thank you", "please", "good night", "see you"]
    rows = [
        {"language": "Dutch", "text": f"{word} {n}", "translation": f"dag {n}", "other_translations": [f"hallo {n}"]}
        for n, word in enumerate(words * 5)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK)
    short = ["--max_steps", "2", "--preflight", "false", "--max_new_tokens", "4", "--verdict_rows", "3", "--save_every", "0"]
    assert main(["fit", "embedded", "--config", "task.yaml", "--data", "rows.jsonl", "--output", "run", *short]) == 0
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert {"token_f1", "rougeL"} <= {metric["metric"] for metric in verdict["comparisons"]}
    assert verdict["samples"][0]["prompt"].count("Translate to Dutch: ") == 1
    asked = yaml.safe_load(TASK)["task"]
    began = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["task"]
    assert {key: began[key] for key in asked} == asked
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "rows.jsonl", "--max_rows", "3", "--max_new_tokens", "4", "--json"]) == 0
    found = capsys.readouterr()
    assert "task: custom, as in run 'run'" in found.err
    assert {"token_f1", "rougeL"} <= set(json.loads(found.out)["metrics"])
