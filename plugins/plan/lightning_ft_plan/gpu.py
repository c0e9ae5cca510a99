"""The ways that a step takes on a GPU only, for a rehearsal on tensors that hold no data."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from lightning_ft.engine import kernels, recompute
from lightning_ft.engine.cross_entropy import default_chunk
from lightning_ft_plan.stand_ins import Empty

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.run.hardware import Formats
    from lightning_ft_plan.scene import Scene


class _Elsewhere(torch.autograd.graph.saved_tensors_hooks):
    """The memory of a GPU's host, which is not counted; what comes back holds ones."""

    def __init__(self) -> None:
        super().__init__(lambda tensor: (tensor.shape, tensor.dtype), lambda kept: torch.ones(kept[0], dtype=kept[1]))


@contextlib.contextmanager
def ways_of_a_gpu() -> Iterator[None]:
    """Within the block the product takes the tensors for those of a GPU that has its kernels."""
    before = kernels.of, kernels.matrix, recompute.on_host
    kernels.of = lambda tensor: None if tensor.dtype == torch.float64 else Empty()
    kernels.matrix = lambda *tensors: None
    recompute.on_host = _Elsewhere
    try:
        yield
    finally:
        kernels.of, kernels.matrix, recompute.on_host = before


def gpu_chunk(scene: Scene, formats: Formats, memory: int, positions: int) -> int:
    """Bytes by which the output layer takes more on a GPU than it was rehearsed with on a CPU.

    Args:
        scene: What all methods have in common.
        formats: Of the run.
        memory: Of the GPU in bytes, by which it chooses its chunks.
        positions: Of the batch, of which a chunk has no more.
    """
    text = scene.model_config.get_text_config()
    size = int(text.vocab_size)
    width = 2 if "16" in formats.lightning else formats.weights.itemsize
    on_cpu = width * min(positions, default_chunk(size, torch.device("cpu"))) * size
    chunk = min(max(memory // 64, 2**27), 2**30) // (6 * size)  # as `default_chunk` chooses it
    return width * min(chunk, positions) * size - on_cpu
