"""SimPO: the better answer's likelihood per token shall be above the worse one's by a margin, whatever model it began with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lightning_ft.objective import Objective
from lightning_ft.types import Example, LossOutput, Preference
from lightning_ft_objectives.pairs import answers_of, check_not_negative, check_positive, reward_logs, term

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lightning_ft.types import Batch


@dataclass(frozen=True)
class SimPO(Objective):
    """Simple preference optimisation: the better answer is more likely per token, by a margin; no reference model.

    Meng et al. 2024, arXiv:2405.14734, eq. 6, for a better answer w of |w| tokens and a worse one l, averaged over pairs:

        r(y) = beta / |y| log pi(y|x)
        loss = -log sigma(r(w) - r(l) - gamma)

    Logged are `chosen_reward` r(w), `rejected_reward` r(l), `reward_margin` r(w) - r(l), and the share of pairs with a positive
    margin, `reward_accuracy`, ties counting half; gamma is in none of them.
    """

    name: ClassVar[str] = "simpo"
    examples: ClassVar[tuple[type[Example], ...]] = (Preference,)
    pace: ClassVar[float] = 0.1
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "reward_accuracy": "max", "reward_margin": "max", "chosen_reward": "max", "rejected_reward": "min",
    }  # fmt: skip

    beta: float = 2.0
    """Factor of the log-probabilities per token (nats): the larger, the smaller a difference is enough."""
    gamma: float = 1.0
    """Margin by which the better answer's reward is to be above the worse one's; not its ratio to beta, which others take."""

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)
        check_not_negative("gamma", self.gamma)

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        """The term `simpo`, summed over pairs.

        Raises:
            TrainingError: the batch's rows are no pairs.
        """
        import torch.nn.functional as F

        chosen, rejected = (self.beta * answers.means for answers in answers_of(model, batch))
        losses = -F.logsigmoid(chosen - rejected - self.gamma)
        return LossOutput({"simpo": term(losses)}, reward_logs(chosen, rejected))
