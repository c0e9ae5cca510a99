"""`lightning-ft score` with metrics of text."""

from __future__ import annotations

import json
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


def test_many_groups_are_cut_in_the_table_and_whole_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(f'{{"prediction": "a", "reference": "a", "kind": "k{i}"}}\n' for i in range(50)))
    words = ["score", str(file), "--metrics", "exact_match", "--by", "kind"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "... and 20 more groups; --json has all" in shown
    assert "k35 " in shown
    assert "k36 " not in shown
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"]["k49"] == {"exact_match": 1.0}
