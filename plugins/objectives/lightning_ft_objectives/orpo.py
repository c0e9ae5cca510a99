"""ORPO: supervised fine-tuning on the better answer that also pushes the odds of the worse one down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lightning_ft.objective import Objective
from lightning_ft.types import Example, LossOutput, Preference
from lightning_ft_objectives.pairs import accuracy, answers_of, check_positive, term

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from lightning_ft.types import Batch


@dataclass(frozen=True)
class ORPO(Objective):
    """Odds ratio preference optimisation: likelihood of the better answer, and better odds than the worse one's.

    Hong et al. 2024, arXiv:2403.07691, eq. 3 to 7, for a better answer w of |w| tokens and a worse one l, averaged over pairs:

        log p(y) = 1 / |y| log pi(y|x)
        odds(y) = p(y) / (1 - p(y))
        sft = -log p(w)
        odds_ratio = -log sigma(log odds(w) - log odds(l))
        loss = sft + beta odds_ratio

    There is no reference model. beta is the paper's lambda. The likelihood is the answer's, each pair counting the same; TRL
    takes the prompt's tokens too, and the mean over all tokens of a micro-batch.

    Logged are `log_odds_ratio`, log odds(w) - log odds(l), and the share of pairs where it is positive, `reward_accuracy`,
    ties counting half.
    """

    name: ClassVar[str] = "orpo"
    examples: ClassVar[tuple[type[Example], ...]] = (Preference,)
    pace: ClassVar[float] = 0.1
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"reward_accuracy": "max", "log_odds_ratio": "max"}

    beta: float = 0.1
    """Weight of the odds ratio beside the likelihood of the better answer (lambda of the paper)."""

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        """The terms `sft` and `odds_ratio`, summed over pairs.

        Raises:
            TrainingError: the batch's rows are no pairs.
        """
        import torch.nn.functional as F

        chosen, rejected = (answers.means for answers in answers_of(model, batch))
        ratios = log_odds(chosen) - log_odds(rejected)
        terms = {"sft": term(-chosen), "odds_ratio": term(-F.logsigmoid(ratios), self.beta)}
        return LossOutput(terms, {"log_odds_ratio": term(ratios.detach()), "reward_accuracy": accuracy(ratios)})


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p (nats), elementwise, of the same shape.

    1 - exp(log p) is -expm1(log p) here, as in float32 exp rounds to 1 whatever is above -3e-8. A sure answer has log p = 0,
    or by rounding a little more, and then its odds have no logarithm: log p is held at least one machine epsilon below 0, which
    is log odds of at most 16 in float32, and what is held has no gradient. A little below, the gradient 1 / (1 - p) is large,
    but that of log p to the logits is a mean over tokens of what is of the order of 1 minus the token's probability.
    """
    import torch

    held = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return held - torch.log(-torch.expm1(held))
