"""The contract of a training objective: from a model and a micro-batch to named, exactly countable loss terms."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lightning_ft.types import Classified, Conversation, Example, Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lightning_ft.types import Batch, LossOutput


@dataclass(frozen=True)
class Objective(ABC):
    """What is minimised.

    An objective returns sums, never means: the module divides once, by the total of the whole optimiser step over
    micro-batches and ranks (`Step.totals`), so that the result does not depend on how the step was cut.
    """

    name: ClassVar[str]
    """What users type, case-insensitively."""
    default: ClassVar[bool] = False
    """Whether this objective is taken when none is named."""
    examples: ClassVar[tuple[type[Example], ...]] = (Conversation, Text, Classified)
    """The example types that it can train on; a class is trained as the answer to its text."""
    reference: ClassVar[bool] = False
    """Whether it needs `Batch.reference`: the log-probabilities are computed once, before the first step."""
    pace: ClassVar[float] = 1.0
    """Factor of the usual learning rate, where the user gives none."""
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {}
    """Logs that a validation reports beside the loss, and which way each is better; then the loss is that of its own terms.
    Empty: a validation reports likelihoods per token."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        """The loss terms of one micro-batch.

        One that can smooth labels takes the keyword `label_smoothing: float = 0.0`, too.
        """

    @classmethod
    def smooths(cls) -> bool:
        """Whether its call takes that keyword; where it does not, `--label_smoothing` is refused."""
        return "label_smoothing" in inspect.signature(cls.__call__).parameters

    def prepare(self, model: nn.Module, batch: Batch) -> Batch:
        """Add to the batch what must be computed without gradient first, by the model as it is (rollouts)."""
        return batch
