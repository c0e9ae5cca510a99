from pathlib import Path

import pytest

from lightning_ft.cache import cache_root, user_cache


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    assert user_cache() != tmp_path, "small things need not move"
    monkeypatch.delenv("LIGHTNING_FT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/lightning-ft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "lightning-ft"
