"""What a validation of a run adds up, and what it says in the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_ft.monitor import LOSS, TOKEN_ACCURACY, measured, of_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from lightning_ft.objective import Objective
    from lightning_ft.types import Batch, LossOutput


class Validation(ABC):
    """Sums over the batches of one process; the processes' sums are added before `values` is asked."""

    sums: Tensor
    """(n, k) float64."""

    @abstractmethod
    def add(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch; one that names no rows makes the same passes through the model and adds nothing."""

    @abstractmethod
    def values(self, sums: Tensor) -> dict[str, float]:
        """What is reported of the sums over all processes, by name."""


class Likelihoods(Validation):
    """Loss and accuracy over all tokens of the set, and the loss of each source.

    Args:
        sources: Files whose loss is told apart.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self.sources = tuple(sources)
        self.sums = torch.zeros(1 + len(self.sources), 3, dtype=torch.float64)

    def add(self, model: nn.Module, batch: Batch) -> None:
        """Sum of NLL, tokens, right tokens."""
        from lightning_ft.engine.loss import score_rows

        scores = score_rows(model, batch)
        for name, score in zip(batch.rows, scores, strict=True) if batch.rows else ():
            found = torch.tensor(score, dtype=torch.float64)
            self.sums[0] += found
            if (source := name.rpartition(":")[0]) in self.sources:
                self.sums[1 + self.sources.index(source)] += found

    def values(self, sums: Tensor) -> dict[str, float]:
        """Means over tokens."""
        (nll, tokens, correct), *of_sources = sums.tolist()
        found = {LOSS: nll / max(1.0, tokens), TOKEN_ACCURACY: correct / max(1.0, tokens)}
        apart = zip(self.sources, of_sources, strict=True)
        return found | {of_source(name): nll / max(1.0, tokens) for name, (nll, tokens, _) in apart}


class OwnTerms(Validation):
    """The terms of an objective as `val_loss`, and its logs.

    Args:
        objective: One that says what it measures.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.names = tuple(objective.measures)
        self.weights: dict[str, float] = {}
        """Of the terms, as the first batch had them."""
        self.sums = torch.zeros(0, 2, dtype=torch.float64)

    @torch.no_grad()
    def add(self, model: nn.Module, batch: Batch) -> None:
        """Sum and count of each term and log."""
        output = self.objective(model, self.objective.prepare(model, batch))
        self.weights = self.weights or {name: term.weight for name, term in output.terms.items()}
        found = table(output, self.names)
        if not len(self.sums):
            self.sums = torch.zeros_like(found)
        if batch.rows:
            self.sums += found

    def values(self, sums: Tensor) -> dict[str, float]:
        """Weighted means of the terms together, and the mean of each log."""
        means = (sums[:, 0] / sums[:, 1].clamp_min(1e-12)).tolist()
        terms = means[: len(self.weights)]
        loss = sum(weight * mean for weight, mean in zip(self.weights.values(), terms, strict=True))
        return {LOSS: loss} | {measured(name): mean for name, mean in zip(self.names, means[len(terms) :], strict=True)}


def table(output: LossOutput, logs: Sequence[str]) -> Tensor:
    """(n, 2) float64 on the CPU: sum and count of each term, then of each log that is named."""
    terms = [*output.terms.values(), *(output.logs[name] for name in logs)]
    return torch.stack([torch.stack([_plain(term.sum), _plain(term.count)]) for term in terms])


def _plain(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).detach().to("cpu", torch.float64)
