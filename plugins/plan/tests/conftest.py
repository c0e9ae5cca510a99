from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_plan.planning import Planning

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 60


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"What is {n} + {n}?", "completion": f"{n} + {n} is {2 * n}."} for n in range(ROWS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is measured: without fast bf16 one takes half a minute."""
    monkeypatch.setattr(Planning, "_speed", lambda *_, **__: None)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Rows for the methods that `usefixtures` is parametrised with alone, as each takes a second."""
    every = Planning.methods

    def chosen(self: Planning) -> Any:
        return [row for row in every(self) if row[0] in request.param]

    monkeypatch.setattr(Planning, "methods", chosen)
