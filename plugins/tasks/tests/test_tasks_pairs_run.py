"""Preference pairs from the command line, and what a run that trained on them says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch.nn.functional as F
from lightning_ft_tasks.instruct import Instruct
from lightning_ft_tasks.preference import PreferencePairs, UnpairedAnswers

import lightning_ft
from lightning_ft.api import run_stage
from lightning_ft.cli import main
from lightning_ft.config import TrainingConfig
from lightning_ft.engine.loss import token_logps
from lightning_ft.errors import DataError, UsageError
from lightning_ft.evaluation import Evaluation
from lightning_ft.objective import Objective
from lightning_ft.run.verdict import names_for, of_pairs
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.types import Example, LossOutput, LossTerm, Preference

if TYPE_CHECKING:
    from torch import nn

    from lightning_ft.testing.fixtures import Scratch
    from lightning_ft.types import Batch

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Count to {i}. " + "Please. " * (i % 4), "chosen": f"one two {i}", "rejected": "no " * (1 + i % 7),
     "kind": ("odd", "even")[i % 2 == 0]}
    for i in range(20)
]  # fmt: skip


@dataclass(frozen=True)
class Apart(Objective):
    """-log sigmoid of how much likelier the better answer is: it has no reference and lowers both if that parts them."""

    name: ClassVar[str] = "apart"
    examples: ClassVar[tuple[type[Example], ...]] = (Preference,)

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        found = token_logps(model, batch).view(-1, 2)
        real = float(bool(batch.lengths))
        losses = -F.logsigmoid(found[:, 0] - found[:, 1])
        return LossOutput({"apart": LossTerm(losses.sum() * real, len(found) * real, per="rows")})


def test_the_command_line_tells_the_metrics_of_the_task_alone(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("pairs.jsonl", ROWS)
    assert main(["evaluate", "embedded", "--data", "pairs.jsonl", "--by", "kind", "--output", "one"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PreferencePairs.metrics)
    assert "perplexity" not in shown
    found = Evaluation.read(Path("one"))
    assert tuple(found.metrics) == PreferencePairs.metrics
    assert [row.row for row in found.rows] == [f"pairs.jsonl:{i + 1}" for i in range(len(ROWS))]
    assert set(found.counts.values()) == {len(ROWS)}
    assert set(found.groups) == {"even", "odd"}
    assert all(row.prediction is None and row.worse is not None for row in found.rows)
    right = [row.worse is not None and row.nll < row.worse[0] for row in found.rows]
    assert found.metrics["preference_accuracy"] == sum(right) / len(right)


def test_two_processes_say_what_one_says(scratch: Scratch, tmp_path: Path) -> None:
    model = str(tiny_backbone_folder(tmp_path / "model"))
    words = ["evaluate", model, "--data", scratch.write("pairs.jsonl", ROWS[:9])]
    assert main([*words, "--output", "one"]) == 0
    done = subprocess.run([sys.executable, "-m", "lightning_ft", *words, "--devices", "2", "--output", "two"], check=False)
    assert done.returncode == 0
    one, two = (Evaluation.read(Path(name)) for name in ("one", "two"))
    assert [row.row for row in two.rows] == [row.row for row in one.rows]
    for ours, theirs in zip(one.rows, two.rows, strict=True):
        assert ours.worse is not None
        assert theirs.worse == pytest.approx(ours.worse, rel=1e-5)
    assert two.metrics == pytest.approx(one.metrics, rel=1e-5)


def test_named_metrics_may_read_anything_of_the_better_answer(scratch: Scratch, tmp_path: Path) -> None:
    model = str(tiny_backbone_folder(tmp_path / "model"))
    file = scratch.write("pairs.jsonl", ROWS[:3])
    found = lightning_ft.evaluate(model, file, metrics=["loss", "preference_margin", "exact_match"], max_new_tokens=2)
    assert list(found.metrics) == ["loss", "preference_margin", "exact_match"]
    assert [row.references for row in found.rows] == [(row["chosen"],) for row in ROWS[:3]]
    assert all(row.prediction is not None for row in found.rows)


def test_a_file_that_is_also_one_of_instructions_is_that_unless_the_task_is_named(scratch: Scratch, tmp_path: Path) -> None:
    model = str(tiny_backbone_folder(tmp_path / "model"))
    file = scratch.write("both.jsonl", [{**row, "response": row["chosen"]} for row in ROWS[:3]])
    found = lightning_ft.evaluate(model, file, max_new_tokens=2, metrics=["loss"])
    assert found.details["task"] == "instruct"
    assert lightning_ft.evaluate(model, file, task="preference").details["task"] == "preference"
    with pytest.raises(DataError, match=r"both.jsonl:1: expected a pair .*, got Conversation \(metric preference_accuracy\)"):
        lightning_ft.evaluate(model, file, metrics=["preference_accuracy"])
    with pytest.raises(DataError, match=r"both.jsonl:\d: expected a pair .*, got Conversation \(metric preference_accuracy\)"):
        lightning_ft.fit(model=model, data=file, metrics=["preference_accuracy"], split=[0.4, 0.0, 0.6], output="run")
    assert not Path("run/metrics.jsonl").exists()
    judged = scratch.write("judged.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    with pytest.raises(UsageError, match="no objective of the installed plugins trains on judged answers"):
        lightning_ft.evaluate(model, judged, task="unpaired")


def test_which_metrics_an_evaluation_has() -> None:
    assert names_for(PreferencePairs(), None) == PreferencePairs.metrics
    assert names_for(PreferencePairs(), ["loss", "loss"]) == ("loss",)
    assert names_for(Instruct(), None)[:3] == names_for(UnpairedAnswers(), None)[:3] == ("loss", "perplexity", "token_accuracy")
    assert (of_pairs(PreferencePairs()), of_pairs(Instruct()), of_pairs(UnpairedAnswers())) == (True, False, False)


def test_a_run_on_pairs_is_judged_by_them_and_keeps_general_text(scratch: Scratch, tmp_path: Path) -> None:
    """The verdict knows no likelihood of the better answers; the retention set is of conversations all the same."""
    model = str(tiny_backbone_folder(tmp_path / "model"))
    splits = ["train"] * 48 + ["test"] * 12
    rows = [{**ROWS[i % 20], "prompt": f"Row {i}.", "split": split} for i, split in enumerate(splits)]
    general = [{"prompt": f"General {i}?", "response": "It is."} for i in range(6)]
    common: dict[str, Any] = {
        "model": model, "data": scratch.write("pairs.jsonl", rows), "objective": Apart(), "precision": "fp32", "epochs": 6.0,
        "batch_size": 8, "learning_rate": 3e-3, "save_every": 0, "retention": scratch.write("general.jsonl", general),
    }  # fmt: skip
    run = lightning_ft.fit(output="run", **common)
    assert run.verdict is not None
    found = {one.metric: one for one in run.verdict.comparisons}
    assert tuple(found) == PreferencePairs.metrics
    assert found["preference_margin"].better
    assert found["preference_margin"].rows == 12
    assert [(one.metric, one.rows) for one in run.verdict.retention] == [("loss", 6), ("token_accuracy", 6)]
    assert json.loads(Path("run/verdict.json").read_text(encoding="utf-8"))["rows"] == 12
    assert len(lightning_ft.evaluate("run", str(common["data"]), output="again").rows) == 60
    config = TrainingConfig.from_dict({"model": "run", "data": [common["data"]], "objective": Apart(), "precision": "fp32"})
    tested = run_stage(config, "test")
    assert [tested[name] for name in PreferencePairs.metrics] == pytest.approx([one.tuned for one in found.values()], rel=1e-5)


def test_a_likelihood_that_the_user_names_is_told_and_no_sign_of_trouble(scratch: Scratch, tmp_path: Path) -> None:
    """The better answers of the test are of the kind that training makes unlikely."""
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "split": "test"} for row in ROWS]
    run = lightning_ft.fit(
        model=str(tiny_backbone_folder(tmp_path / "model")), objective=Apart(), method="full", metrics=["loss"], max_steps=5,
        data=scratch.write("pairs.jsonl", [{**row, "split": "train"} for row in ROWS * 2] + turned), precision="fp32",
        batch_size=8, learning_rate=1e-2, retention="none", output="run",
    )  # fmt: skip
    assert run.verdict is not None
    assert [(one.metric, one.word) for one in run.verdict.comparisons] == [("loss", "worse")]
    assert run.verdict.comparisons[0].difference > 0.1 * run.verdict.comparisons[0].base
    assert run.verdict.signs == []
