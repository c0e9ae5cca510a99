"""What the tests of streams share: a folder and a cache of their own, and runs that are closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.streams.made import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_folder_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs() -> Iterator[Any]:
    made: list[Run] = []

    def make(data: list[str], **options: Any) -> Run:
        made.append(Run(data, **options))
        return made[-1]

    yield make
    for run in made:
        run.close()
