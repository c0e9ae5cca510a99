"""What the objectives of preference pairs share: what both answers of each pair got, sums over pairs, logs, and options.

A batch that only keeps its rank in step with the others has rows that count nowhere. Its pairs are none: sums over them are 0
and still have a graph to every parameter, so that no formula needs a case of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_ft.errors import TrainingError, UsageError
from lightning_ft.types import LossTerm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_ft.types import Batch

REPORT = "this is a bug in what made the batch: please report it with the run's config.yaml."


@dataclass(frozen=True, slots=True)
class Answers:
    """The better, or the worse, answers of P pairs under the model that is trained."""

    logps: Tensor
    """(P,) log-probability (nats) of each answer, summed over its tokens, with gradient."""
    tokens: Tensor
    """(P,) tokens of each answer."""

    @property
    def means(self) -> Tensor:
        """(P,) log-probability per token."""
        return self.logps / self.tokens


def answers_of(model: nn.Module, batch: Batch) -> tuple[Answers, Answers]:
    """The better and the worse answers of a batch.

    Raises:
        TrainingError: its rows are no pairs.
    """
    from lightning_ft.engine.loss import token_counts, token_logps

    if _counts(batch) and (batch.together != 2 or len(batch.rows) % 2):
        got = f"{len(batch.rows)} rows with together {batch.together}"
        raise TrainingError(f"Expected a batch of pairs, each a better and a worse answer (together 2), got {got}; {REPORT}")
    logps, tokens = token_logps(model, batch), token_counts(batch)
    better, worse = _sides(batch)
    return Answers(logps[better], tokens[better]), Answers(logps[worse], tokens[worse])


def references_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """(P,) log-probabilities of the better and of the worse answers under the model that training began with.

    Raises:
        TrainingError: the batch does not have them.
    """
    import torch

    found = batch.reference
    if found is None and not _counts(batch):
        found = torch.zeros(0, device=batch.input_ids.device)
    if found is None or (_counts(batch) and found.shape != (len(batch.rows),)):
        got = "none" if found is None else f"a tensor of shape {tuple(found.shape)}"
        raise TrainingError(f"Expected a log-probability of each of {len(batch.rows)} rows as `reference`, got {got}; {REPORT}")
    better, worse = _sides(batch)
    return found[better], found[worse]


def term(values: Tensor, weight: float = 1.0) -> LossTerm:
    """The sum of (P,) values, which the step divides by the number of all its pairs."""
    return LossTerm(values.sum(), float(len(values)), weight, per="rows")


def reward_logs(chosen: Tensor, rejected: Tensor) -> dict[str, LossTerm]:
    """What is logged of (P,) rewards of the better and of the worse answers."""
    logs = {"chosen_reward": chosen, "rejected_reward": rejected, "reward_margin": chosen - rejected}
    return {**{name: term(values.detach()) for name, values in logs.items()}, "reward_accuracy": accuracy(chosen - rejected)}


def accuracy(margins: Tensor) -> LossTerm:
    """The share of (P,) margins above 0, a tie being half right."""
    found = margins.detach()
    return term((found > 0).to(found.dtype) + 0.5 * (found == 0))


def check_positive(option: str, value: float) -> None:
    """Refuse what is not a finite number above 0.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not 0 < value < math.inf:
        raise UsageError(f"Expected --objective.{option} to be a number above 0; got {value}.")


def check_not_negative(option: str, value: float) -> None:
    """Refuse what is not a finite number of at least 0.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not 0 <= value < math.inf:
        raise UsageError(f"Expected --objective.{option} to be a number of at least 0; got {value}.")


def _counts(batch: Batch) -> bool:
    return bool(batch.rows and batch.lengths)


def _sides(batch: Batch) -> tuple[slice, slice]:
    """Which rows are the better and which the worse answers; of a batch whose rows count nowhere, none."""
    rows = len(batch.rows) if _counts(batch) else 0
    return slice(0, rows, 2), slice(1, rows, 2)
