"""How much memory there is, and how many tokens of a micro-batch it is meant for."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

MICRO_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Most tokens of a micro-batch where the user does not say; a step of many rows is cut into several, which changes nothing
but memory."""
LEAST_TOKENS = 256
"""Where a model leaves less room than that, the preflight and the steps themselves halve further."""


def machine_memory() -> int | None:
    """Bytes of the machine, or of its container where that may take less; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def device_memory(device: torch.device) -> int | None:
    """Bytes of the machine, or of the smallest of its GPUs: processes side by side have to cut their steps alike."""
    if device.type != "cuda":
        return machine_memory()
    import torch

    return min(torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count()))


def micro_tokens(config: PretrainedConfig, kind: str, memory: int | None, *, recomputed: bool = False) -> int:
    """Tokens of a micro-batch whose activations take about a quarter of the memory: a power of two, at most `MICRO_TOKENS`.

    In 16 bits a decoder layer keeps about 8 D + 3 F numbers a token for its backward pass, with hidden size D and
    feed-forward size F: what goes into and comes out of its norms, projections, attention and gates. Recomputed layers keep D.

    Args:
        config: Of the model.
        kind: `cpu` or `cuda`.
        memory: Bytes for this process, all of them: what is free at the moment would make runs differ. None: unknown.
        recomputed: Whether activations are.
    """
    most, text = MICRO_TOKENS[kind], config.get_text_config()
    sizes = [getattr(text, name, None) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")]
    layers, hidden, inner = (size if isinstance(size, int) and size > 0 else 0 for size in sizes)
    if memory is None or not layers or not hidden:
        return most
    layer = 8 * hidden + 3 * (inner or 4 * hidden)
    a_token = 2 * (layers * hidden + layer if recomputed else layers * layer)
    return min(most, max(LEAST_TOKENS, 1 << (max(1, memory // 4 // a_token).bit_length() - 1)))
