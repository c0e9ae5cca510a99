"""`lightning-ft score` with metrics of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_groups_that_no_row_is_in_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prediction": "a", "reference": "b", "kind": "x", "tags": []}\n')
    assert main(["score", str(file), "--metrics", "exact_match", "--by", "kidn"]) == 2
    assert "(kind), got 'kidn'. Did you mean 'kind'?" in capsys.readouterr().err
    assert main(["score", str(file), "--metrics", "exact_match", "--by", "tags"]) == 2
    assert main(["score", str(file), "--metrics", "exact_match", "--by", "kind"]) == 0


def test_a_metric_that_counts_no_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prediction": "a", "reference": "b"}\n')
    assert main(["score", str(file), "--metrics", "exact_match", "adherence", "DISTINCT_2"]) == 2
    assert "expected rows that count for adherence, distinct_2, got none among 1" in capsys.readouterr().err
