"""Bases and optimisers in 4 and 8 bits as a plugin of lightning-ft. Hooks only; bitsandbytes is imported late."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lightning_ft import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.optim import Optimizer

    from lightning_ft.backbone import Backbone, BackboneSpec

# It warns of kernels of the hub that it goes on without, and at every single product of a bfloat16 input with int8 weights.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@hookimpl
def load_backbone(spec: BackboneSpec) -> Backbone | None:
    """A causal language model with linear layers in 4 or 8 bits, where that is asked for."""
    if spec.quantization is None:
        return None
    from lightning_ft_quantize.backbone import load_quantized

    return load_quantized(spec, spec.quantization)


@hookimpl
def register_optimizers() -> Iterable[type[Optimizer]]:
    """AdamW and Lion with 8-bit state, and AdamW whose state moves to the host where the GPU is full."""
    from lightning_ft_quantize.optimizers import AdamW8bit, Lion8bit, PagedAdamW, PagedAdamW8bit

    return [AdamW8bit, Lion8bit, PagedAdamW, PagedAdamW8bit]
