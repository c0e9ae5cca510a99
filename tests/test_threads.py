"""A process in a container computes with the threads that it may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from lightning_ft import threads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def eight() -> Iterator[None]:
    """As on a machine of eight cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("limit", "processes", "expected"),
    [
        ("200000 100000", 1, 2), ("150000 100000", 1, 2), ("400000 100000", 2, 2), ("100000 100000", 4, 1),
        ("max 100000", 1, 8),
        ("1600000 100000", 1, 8), ("nonsense", 1, 8), (None, 1, 8),
    ],
)  # fmt: skip
def test_threads_are_those_of_the_containers_share(
    limit: str | None, processes: int, expected: int, eight: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    threads.keep_to_quota(processes)
    assert torch.get_num_threads() == expected
