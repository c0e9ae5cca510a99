"""The kit as a pytest plugin: its fixtures are there wherever lightning-ft is installed. Imports nothing heavy at start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from lightning_ft.registry import Registry
    from lightning_ft.testing.stranger import Stranger


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    """A fresh tiny Llama (seed 0), the test's own to change."""
    from lightning_ft.testing import models

    return models.tiny_llama()


@pytest.fixture
def tiny_gpt2() -> PreTrainedModel:
    """A fresh tiny GPT-2 (seed 0), the test's own to change."""
    from lightning_ft.testing import models

    return models.tiny_gpt2()


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fresh byte-level tokenizer with a chat template."""
    from lightning_ft.testing import models

    return models.tiny_tokenizer()


class Scratch:
    """An empty folder that is the current one, with files of rows."""

    def write(self, name: str, rows: Iterable[Any]) -> str:
        """Write JSON lines, of which a text stands for itself; the name comes back."""
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        Path(name).write_text(text, encoding="utf-8")
        return name

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file of JSON lines."""
        return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    """A folder to write rows into, the current one for the test; what is printed is 300 characters wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return Scratch()


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of encoded data of the module's own, for its runs."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_FT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data(pytestconfig: pytest.Config) -> Path:
    """Folder of real public data sets: `LIGHTNING_FT_DATA`, else `shared/data` beside the repository; skips without."""
    named = os.environ.get("LIGHTNING_FT_DATA")
    candidates = [Path(named)] if named else [p.parent / "shared" / "data" for p in (pytestconfig.rootpath, Path.cwd())]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip(f"no real data at {candidates[0]}: set LIGHTNING_FT_DATA to a folder of public data sets")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    """A process without lightning-ft: `stranger.logits(folder, ids)` is what a saved model computes there."""
    from lightning_ft.testing.stranger import Stranger

    process = Stranger(tmp_path_factory.mktemp("stranger"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The registry of everything installed."""
    from lightning_ft.registry import registry as build

    return build()
