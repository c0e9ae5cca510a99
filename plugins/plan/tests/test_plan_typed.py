from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest
from lightning_ft_plan.command import main
from lightning_ft_plan.forecast import Row
from lightning_ft_plan.planning import Planning
from lightning_ft_plan.typed import words

from lightning_ft.cli.resolve import check_torch_names, parse, resolve
from lightning_ft.testing.models import tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

FILE = """\
task: {name: instruct, system: "- Answer: yes, or [no] #1", shots: 0}
trainer:
  max_time: "10:00:00:00"
  profiler: null
  callbacks: [{class_path: lightning.pytorch.callbacks.StochasticWeightAveraging, init_args: {swa_lrs: 0.00001}}]
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {name: exp, save_dir: logs}}
columns: {question: "sentence|line", name: person}
mix: {a.jsonl: 2, "b c.jsonl": 0.5}
val_data: []
max_steps: null
split: [0.8, 0.1, 0.1]
metrics: [loss, perplexity]
holdout_tasks: ["a, b", "c"]
"""
GIVEN = (
    "--data a.jsonl 'b c.jsonl' --batch_tokens 512 --learning_rate 1e-4 --gradient_checkpointing 2 --max_length none "
    "--method LoRA --method.target_modules [q_proj,v_proj] --method.use_dora true --optimizer Lion --optimizer.betas [0.9,0.95]"
)


def test_what_is_typed_asks_for_the_same(tmp_path: Path) -> None:
    """Whatever comes from a file or a preset is there as a flag, texts with commas and spaces as they are."""
    (tmp_path / "file.yaml").write_text(FILE, encoding="utf-8")
    first = resolve(parse(["m", "--config", str(tmp_path / "file.yaml"), *shlex.split(GIVEN)]))
    check_torch_names(first)
    again = resolve(parse(shlex.split(shlex.join(words(first)))))
    check_torch_names(again)
    assert first.values.keys() - again.values.keys() == {"val_data"}, "no files are no word"
    first.values.pop("val_data")
    assert again.config() == first.config()
    assert again.trainer == first.trainer
    assert "--columns" in words(first)
    assert not {"--columns", "--split"} & set(words(first, without=("columns", "split")))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows of a day.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": f"{n}."}) + "\n" for n in range(40)), encoding="utf-8")
    return path


@pytest.mark.parametrize("stored", [False, True])
def test_the_command_asks_for_the_run_that_was_planned(
    stored: bool, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing fits but on a base of few bits."""
    judged = Row.verdict
    if stored:
        monkeypatch.setattr(Row, "verdict", lambda row, memory: judged(row, memory) if row.stored else "does not fit")
    monkeypatch.setattr(Planning, "_speed", lambda *_, **__: None)
    folder = tiny_backbone_folder(tmp_path / "model")
    given = ["--batch_tokens", "256", "--quantize", "nf4", "--double_quant", "true", "--method.rank", "8", "--epochs", "2"]
    assert main([str(folder), "--data", str(rows), *given, "--memory", "8GB", "--goal", "domain_shift", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    program, command, *typed = shlex.split(plan["command"])
    assert (program, command) == ("lightning-ft", "fit")
    config = resolve(parse(typed)).config()
    assert (config.model, config.data, config.batch_tokens, config.epochs) == (str(folder), [str(rows)], 256, 2)
    assert ("nf4" in plan["recommendation"]["row"]) == stored
    assert (config.quantize, config.double_quant) == (("nf4", True) if stored else (None, False))
    assert config.method == {"name": "lora", "rank": 8}


def test_a_start_that_a_quantised_base_does_not_take_is_no_row_of_one(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planning, "_speed", lambda *_, **__: None)
    folder = tiny_backbone_folder(tmp_path / "model")
    assert main([str(folder), "--data", str(rows), "--method.init", "pissa", "--memory", "8GB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    found = {row["name"]: row for row in plan["methods"]}
    assert found["lora + nf4"]["verdict"] is None
    assert found["lora + nf4"]["reason"].startswith("not for a quantised base: Expected a base that is not quantised")
    assert plan["recommendation"]["row"] == "lora"
    assert shlex.split(plan["command"])[-2:] == ["--method.init", "pissa"]
