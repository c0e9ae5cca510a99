"""From a `BackboneSpec` to a model and its tokenizer, with the checks that must come before any weight is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
"""The name of the small model that is shipped with the package."""


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Which model, and how it is to be loaded."""

    model: str
    """Folder or hub id of a plain model (adapters and run folders are resolved before)."""
    dtype: torch.dtype | None = None
    """Data type of the weights; None: as they are stored."""
    revision: str | None = None
    trust_remote_code: bool = False
    from_scratch: bool = False
    """Random weights from the model's config."""
    attention: str | None = None
    """Name of the attention function; None: the family's default."""
    options: dict[str, Any] = field(default_factory=dict)
    """For plugins that load models in their own way (quantisation)."""


@dataclass(frozen=True)
class Backbone:
    """A loaded model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
