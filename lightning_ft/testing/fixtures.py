"""The kit as a pytest plugin: its fixtures are there wherever lightning-ft is installed. Imports nothing heavy at start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from lightning_ft.registry import Registry


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
def registry() -> Registry:
    """The registry of everything installed."""
    from lightning_ft.registry import registry as build

    return build()
