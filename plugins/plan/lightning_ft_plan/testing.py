"""What tests of plans share, as the test modules of a plugin cannot import each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.cli import main
from lightning_ft.cli.resolve import Request
from lightning_ft_plan.planning import Planning

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 60


@pytest.fixture(name="rows")
def sixty_rows(tmp_path: Path) -> Path:
    """Sixty short questions with their answers."""
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


def planned(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """What the command prints with `--json`."""
    assert main(["plan", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def requested(model: Path, rows: Path, **options: Any) -> Request:
    """The run of a model on rows, with these options."""
    return Request({"model": str(model), "data": [str(rows)], **options}, frozenset())


def rows_of(*methods: str) -> pytest.MarkDecorator:
    """Only these methods are planned, for a test that looks at no others."""
    return pytest.mark.parametrize("only", [methods], indirect=True, ids=["few"])


def by_name(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the table by their names."""
    return {row["name"]: row for row in plan["methods"]}
