"""Weights of 16 bits that are spread over processes: read as the file has them, each process widening its share for itself.

Until then they stay in the pages of the file, which the processes of a machine share, so that none ever holds the model whole.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_ft.backbone import Backbone, BackboneSpec
    from lightning_ft.run.hardware import Formats


def stored_format(folder: Path) -> str | None:
    """The number format of all weights in a folder, as safetensors calls it; None where they have several or are not there."""
    found = set()
    for file in folder.glob("*.safetensors") if folder.is_dir() else ():
        with safe_open(file, framework="pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - it is no mapping
    return found.pop() if len(found) == 1 else None


def reads_narrow(chosen: Formats, spec: BackboneSpec) -> bool:
    """Whether a run may read its weights in bfloat16: they are stored so, computed with so, and only kept in float32."""
    kept = chosen.gathered_in == torch.bfloat16 and chosen.weights == torch.float32
    return kept and not spec.from_scratch and stored_format(Path(spec.model)) == "BF16"


def load_narrow(load: Callable[[BackboneSpec], Backbone], spec: BackboneSpec) -> Backbone | None:
    """The model in bfloat16; None where a buffer was rounded to it, whose value in float32 nobody could know any more."""
    backbone = load(replace(spec, dtype=torch.bfloat16))
    rounded = any(buffer.dtype == torch.bfloat16 for buffer in backbone.model.buffers())
    return None if rounded else backbone
