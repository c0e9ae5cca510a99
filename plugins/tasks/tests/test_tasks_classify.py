from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.classify import Classify

from lightning_ft.errors import UsageError
from lightning_ft.testing import check_task
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.types import Classified, Text

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.types import Example

ROWS = [
    {"text": f"Where is my {'money' if n % 3 else 'card'} number {n}?", "label": "cash" if n % 3 else "card"} for n in range(60)
]


def data(folder: Path) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(file)


def test_keeps_the_contract() -> None:
    check_task(Classify(labels=("lost_card", "balance", "2")))


def test_candidates_are_the_option_else_the_classes_of_the_rows() -> None:
    rows: list[Example] = [Classified("a", "two"), Classified("b", "one"), Text("c"), Classified("d", "two")]
    assert Classify().candidates(rows) == ["one", "two"]
    assert list(Classify(labels=("x", " y ")).candidates(rows)) == ["x", "y"]


@pytest.mark.parametrize("labels", [("one",), ("one", "one "), ("one", "")])
def test_labels_must_be_names_to_choose_among(labels: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"--task\.labels"):
        Classify(labels=labels)


def test_a_row_of_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 'label' to be one of --task\.labels, got 'three'"):
        Classify(labels=("one", "two")).format({"text": "t", "label": "three"})


def test_a_fit_is_judged_by_what_it_writes_and_by_what_it_holds_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_ft
    from lightning_ft.evaluation import Evaluation

    monkeypatch.chdir(tmp_path)
    model = str(tiny_backbone_folder(tmp_path / "model"))
    options: dict[str, Any] = {"precision": "fp32", "max_new_tokens": 8, "learning_rate": 0.01}
    run = lightning_ft.fit(
        model=model, data=data(tmp_path), epochs=20.0, batch_size=8, output=str(tmp_path / "run"), retention="none", **options
    )
    assert run.verdict is not None
    found = {one.metric: one for one in run.verdict.comparisons}
    assert set(Classify.metrics) <= set(found)
    assert found["choice_accuracy"].tuned == 1
    assert found["accuracy"].base == 0
    scored = lightning_ft.evaluate(
        str(run.folder), data(tmp_path), task={"name": "classify", "labels": ["cash", "card", "else"]}, precision="fp32"
    )
    assert isinstance(scored, Evaluation)
    assert len(scored.rows) == 60
    assert set(scored.rows[0].candidates or ()) == {"cash", "card", "else"}
    assert scored.metrics["choice_accuracy"] > 0.9


def test_a_sample_of_rows_is_a_choice_among_the_classes_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_ft

    monkeypatch.chdir(tmp_path)
    model = str(tiny_backbone_folder(tmp_path / "model"))
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": f"t{n}", "label": f"class {n}"}) + "\n" for n in range(30)), encoding="utf-8")
    scored = lightning_ft.evaluate(model, file, max_rows=2, metrics=["choice_accuracy"], max_new_tokens=2)
    assert len(scored.rows) == 2
    assert all(len(row.candidates or {}) == 30 for row in scored.rows)
    file.write_text("".join(json.dumps({"text": f"t{n}", "label": f"class {n}"}) + "\n" for n in range(1001)), encoding="utf-8")
    with pytest.raises(UsageError, match="expected at most 1000 different references"):
        lightning_ft.evaluate(model, file, max_rows=2, metrics=["choice_macro_f1"])


def test_a_choice_where_any_text_is_an_answer_is_refused_before_training(tmp_path: Path) -> None:
    import lightning_ft

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{n}", "response": f"a{n}"}) + "\n" for n in range(60)), encoding="utf-8")
    model, output = str(tiny_backbone_folder(tmp_path / "model")), tmp_path / "run"
    with pytest.raises(UsageError, match="Expected a task with a fixed set of answers"):
        lightning_ft.fit(model=model, data=file, metrics=["choice_accuracy"], output=str(output))
    assert not (output / "metrics.jsonl").exists()


def test_what_was_measured_stays_where_a_metric_counts_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_ft
    from lightning_ft.evaluation import Evaluation

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "response": "a", "kind": "k"}\n' * 3, encoding="utf-8")
    model = str(tiny_backbone_folder(tmp_path / "model"))
    with pytest.raises(UsageError, match=r"count for metric adherence, got none among 3: 3 have .* Everything else is in out"):
        lightning_ft.evaluate(model, file, metrics=["adherence", "exact_match"], output="out", max_new_tokens=2)
    left = Evaluation.read(tmp_path / "out")
    assert "exact_match" in left.metrics
    assert left.details["left_out"] == ["adherence"]
    with pytest.raises(UsageError, match=r"--by .*\(kind\), got 'kinds'. Did you mean 'kind'"):
        lightning_ft.evaluate(model, file, by="kinds", output="other")


def test_options_of_a_task_are_typed_and_errors_name_flags_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_ft.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(tiny_backbone_folder(tmp_path / "model")), "--data", data(tmp_path), "--max_new_tokens", "2"]
    assert main([*words, "--task", "{name: classify, labels: card}"]) == 2
    assert "Expected --task.labels to be two or more different names; got card." in capsys.readouterr().err
    assert main([*words, "--task", "{name: classify, label_column: [a, b]}"]) == 2
    assert "Expected --task.label_column to be text or none; got 'a b' (a list)." in capsys.readouterr().err
    with open("rows.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(json.dumps({"text": "long " * 200, "label": "card"}) + "\n" for _ in range(6)))
    assert main([*words, "--max_length", "200"]) == 3
    assert "or --max_lost 0.09" in capsys.readouterr().err
    assert main([*words, "--max_length", "200", "--max_lost", "0.1", "--metrics", "loss"]) == 0
    with open("rows.jsonl", "a", encoding="utf-8") as file:
        file.write("no JSON\n" + "".join(json.dumps(row) + "\n" for row in ROWS))
    assert main([*words, "--metrics", "loss", "--max_lost", "0.1"]) == 2
    assert "--on_error skip" in capsys.readouterr().err
    assert main([*words, "--metrics", "loss", "--max_lost", "0.1", "--on_error", "skip"]) == 0
