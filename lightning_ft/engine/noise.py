"""NEFTune: uniform noise on the embeddings of real tokens, in training only."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.engine.model import base_model
from lightning_ft.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from lightning_ft.types import Batch


class EmbeddingNoise:
    """`x + e alpha / sqrt(L d)` with e uniform in [-1, 1], for the embedding x of each token of a document.

    L is the number of the document's tokens, d the width of the embedding, so that each entry of the noise has the variance
    alpha^2 / (3 L d) (Jain et al. 2023, arXiv:2310.05914, algorithm 1). A packed row has a scale per document; padding and
    the tokens that fill a packed row up have none. The noise comes from the generator that dropout comes from, which is
    seeded by step and rank.

    Args:
        model: as it will be trained; whatever runs it, its input embeddings give the noise while `on` a batch.
        alpha: strength; the paper takes 5 to 15.
    """

    def __init__(self, model: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self._scale: Tensor | None = None
        base_model(model).get_input_embeddings().register_forward_hook(self._add)

    @contextlib.contextmanager
    def on(self, batch: Batch) -> Iterator[None]:
        """Within the block passes over this batch that have a gradient are noisy; evaluation and references are not."""
        self._scale = self.alpha * _lengths(batch).rsqrt().nan_to_num(posinf=0.0)
        try:
            yield
        finally:
            self._scale = None

    def _add(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self._scale is None or not torch.is_grad_enabled():
            return None
        if output.shape[:2] != self._scale.shape:
            got, known = tuple(output.shape[:2]), tuple(self._scale.shape)
            raise TrainingError(
                f"The objective embeds {got} tokens of a batch of {known}, of which nobody knows the documents; "
                "leave --neftune_noise_alpha out."
            )
        own = self._scale.pin_memory() if output.is_cuda else self._scale  # else the host would wait for the copy
        scale = own.to(output.device, non_blocking=True)[..., None] * output.shape[-1] ** -0.5
        noise: Tensor = torch.empty(output.shape, device=output.device).uniform_(-1, 1)
        noise = noise.mul_(scale).to(output.dtype)
        return output + noise


def _lengths(batch: Batch) -> Tensor:
    """(B, T) float32: tokens of the document that each position belongs to; 0 where it belongs to none."""
    out = torch.zeros(batch.input_ids.shape)
    if batch.documents is None:
        for row, length in zip(out, batch.lengths, strict=bool(batch.lengths)):  # a batch that only fills up has none
            row[:length] = length
        return out
    # A packed row may end with a document that only fills it up, and has no name.
    for start, end in itertools.islice(itertools.pairwise(batch.documents), len(batch.rows)):
        out[0, start:end] = end - start
    return out
