"""Models compared by which answer of a pair each holds to be the likelier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lightning_ft_compare.command import main

from lightning_ft import evaluate, fit
from lightning_ft.errors import UsageError
from lightning_ft.evaluation import Evaluation

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch

METRICS = ["preference_accuracy", "preference_accuracy_avg", "preference_margin"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> tuple[str, str]:
    """Pairs, and a run of the embedded model on their better answers."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"prompt": f"Where is order {i}?" + " Please." * (i % 3), "chosen": f"Order {i} is in the van.", "rejected": "No idea."}
        for i in range(20)
    ]
    answered = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    for name, values in (("pairs", rows), ("answers", answered)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")
    run = fit(
        model="embedded", data=folder / "answers.jsonl", output=str(folder / "run"), max_steps=8, batch_size=8, epochs=9.0,
        precision="fp32", learning_rate=5e-3, verdict_rows=0, preflight=False, save_every=0,
    )  # fmt: skip
    return str(folder / "pairs.jsonl"), str(run.folder)


def test_from_the_command_line(files: tuple[str, str], scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, run = files
    assert main(["--models", "embedded", run, "--data", pairs, "--output", "report", "--samples", "300"]) == 0
    found = json.loads(Path("report/comparison.json").read_text(encoding="utf-8"))
    (pair,) = found["pairs"]
    assert [one["comparison"]["metric"] for one in pair["differences"]] == METRICS
    assert {one["comparison"]["rows"] for one in pair["differences"]} == {20}
    assert found["rows"] == 20
    margin = pair["differences"][2]["comparison"]
    assert margin["better"]
    sides = [Evaluation.read(Path("report", name)) for name in ("a_embedded", "b_run")]
    for side, value in zip(sides, (margin["base"], margin["tuned"]), strict=True):
        gaps = [row.worse[0] / row.worse[1] - row.nll / row.tokens for row in side.rows if row.worse is not None]
        assert value == pytest.approx(sum(gaps) / 20)
    assert pair["ranked_by"] == "preference_margin"
    assert [one["of"] for one in pair["wins"]] == ["preference_margin"], "the better answer's likelihood says nothing"
    assert r"(by preference\_margin)" in Path("report/report.md").read_text(encoding="utf-8")
    # The folders hold what the metrics read, so that they can be compared again, and by other metrics.
    assert main(["--models", "report/a_embedded", "report/b_run", "--metrics", "loss", "preference_margin"]) == 0
    assert "loss" in capsys.readouterr().out


def test_evaluations_without_pairs_cannot_be_compared_by_them(files: tuple[str, str], scratch: Scratch) -> None:
    pairs, run = files
    for name, model in (("one", "embedded"), ("two", run)):
        evaluate(model, pairs, metrics=["loss"], output=name)
    with pytest.raises(
        UsageError, match=r"Expected likelihoods of a better and of a worse answer for metric 'preference_margin'"
    ):
        main(["--models", "one", "two", "--metrics", "preference_margin"])
