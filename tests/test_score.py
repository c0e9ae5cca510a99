from __future__ import annotations

from typing import TYPE_CHECKING

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
