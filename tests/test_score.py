from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lightning_ft.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_score_lists_bad_rows_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    lines = [
        '{"prediction": "a", "reference": "b"}',
        '{"prediction": 3, "reference": "b"}',
        "{",
        "[]",
        '{"prediction": "a", "reference": 4}',
    ]
    lines += ['{"prediction": "a", "references": []}', '{"prediction": "a", "reference": "b", "references": ["b"]}']
    file.write_text("\n".join(lines))
    assert main(["score", str(file), "--metrics", "same"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"lightning-ft: {file}:2: expected 'prediction' to be text; got a number.",
        f"{file}:3: expected a JSON object; Expecting property name enclosed in double quotes at column 2.",
        f"{file}:4: expected a JSON object; got an empty list.",
        f"{file}:5: expected 'reference' to be text or a list of texts; got a number.",
        f"{file}:6: expected 'references' to be text or a list of texts; got an empty list.",
        f"{file}:7: expected 'reference' or 'references'; got both.",
    ]
    assert main(["score", str(tmp_path / "none.jsonl"), "--metrics", "same"]) == 2
    assert "none.jsonl: expected a .jsonl file of predictions; No such file or directory." in capsys.readouterr().err


def test_score_refuses_metrics_of_likelihoods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prediction": "a", "reference": "b"}\n')
    assert main(["score", str(file), "--metrics", "perplexity"]) == 2
    assert "Expected metrics that read text; got 'perplexity', which needs a model's likelihoods" in capsys.readouterr().err


def test_hyphens_stand_for_underscores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prediction": "a", "reference": "b"}\n')
    assert main(["score", "--predictions", str(file), "--metrics", "perplexity", "--allow-code-execution"]) == 2
    assert "Expected metrics that read text" in capsys.readouterr().err
    assert main(["score", "--predictions", str(file), "--metrics", "perplexity", "--allow-code"]) == 2
    assert "got '--allow-code'" in capsys.readouterr().err


def test_groups_are_those_of_the_columns_that_evaluate_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate` writes what else a row said below its example; each group is shown with its number of rows."""
    file = tmp_path / "predictions.jsonl"
    said = [("refund", "yes", "yes"), ("refund", "no", "yes"), ("order", "no", "no")]
    lines = [{"prediction": a, "references": [b], "example": {"meta": {"intent": name}}} for name, a, b in said]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["score", "--predictions", str(file), "--metrics", "exact_match", "--by", "intent"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["group", "rows", "exact_match"] in shown
    assert ["refund", "2", "50.00", "%"] in shown
    assert ["order", "1", "100.00", "%"] in shown


def test_what_evaluate_wrote_is_scored_as_the_row_that_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The prompt in the file is that as the template wrote it; what was asked stands in the example."""
    from lightning_ft.cli import score

    file = tmp_path / "predictions.jsonl"
    messages: list[dict[str, Any]] = [
        {"role": role, "content": text, "weight": None, "extra": {}} for role, text in (("user", "Hi?"), ("assistant", ""))
    ]
    example = {"type": "Conversation", "messages": messages, "tools": [], "meta": {"kind": "greeting"}}
    line = {"prompt": "<|user|>Hi?<|assistant|>", "prediction": "Hello.", "references": [], "example": example}
    broken = {**line, "example": {**example, "messages": "Hi?"}}
    file.write_text(json.dumps(line) + "\n" + json.dumps(broken) + "\n")
    row = score._row(json.dumps(line), "p:1")
    assert [turn.content for turn in row.example.messages] == ["Hi?", ""]  # type: ignore[union-attr]  # a conversation
    assert (row.prompt, row.references, row.example.meta["kind"]) == ("<|user|>Hi?<|assistant|>", (), "greeting")
    assert main(["score", str(file), "--metrics", "exact_match"]) == 2
    assert "predictions.jsonl:2: expected 'example' as `evaluate` writes it, got TypeError" in capsys.readouterr().err
    own = {"prediction": "a", "reference": "a", "example": {"type": "easy", "id": 3}}
    assert score._row(json.dumps(own), "p:1").references == ("a",), "a column of anybody's"
