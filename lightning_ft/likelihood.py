"""The core's own metrics: what the likelihoods of the given answers say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_ft.types import ScoredRow


class Loss(Metric):
    """Mean negative log-likelihood per supervised token, in nats: sum over all tokens of the set / their number."""

    name: ClassVar[str] = "loss"
    reads = "tokens"
    higher_is_better = False

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """Summed likelihoods and their number."""
        return (row.nll, row.tokens)


class Perplexity(Loss):
    """exp(loss) over all tokens of the set, never a mean over batches."""

    name: ClassVar[str] = "perplexity"

    def finish(self, totals: Tensor) -> Tensor:
        """The exponential of the mean."""
        return super().finish(totals).exp()


class BitsPerByte(Metric):
    """Bits per UTF-8 byte of the supervised text, `sum NLL / (bytes ln 2)`: comparable across tokenizers."""

    name: ClassVar[str] = "bits_per_byte"
    reads = "tokens"
    higher_is_better = False

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """Summed bits and bytes."""
        return (row.nll / math.log(2), row.utf8_bytes)


class TokenAccuracy(Metric):
    """Share of supervised tokens whose most likely prediction was right."""

    name: ClassVar[str] = "token_accuracy"
    reads = "tokens"
    percent: ClassVar[bool] = True

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """Right predictions and tokens."""
        return (row.correct, row.tokens)
