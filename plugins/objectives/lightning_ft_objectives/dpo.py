"""DPO and its relatives: the better answer shall gain on the worse one, measured from the model that training began with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from lightning_ft.errors import UsageError
from lightning_ft.objective import Objective
from lightning_ft.types import Example, LossOutput, Preference
from lightning_ft_objectives.pairs import answers_of, check_not_negative, check_positive, references_of, reward_logs, term

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from lightning_ft.types import Batch

Loss = Literal["sigmoid", "hinge", "ipo"]


@dataclass(frozen=True)
class DPO(Objective):
    """Direct preference optimisation: the better answer gains on the worse one, from the model that training began with.

    With log pi(y|x) the sum over the tokens of answer y, for a better answer w, a worse one l and the starting model ref

        h = (log pi(w|x) - log ref(w|x)) - (log pi(l|x) - log ref(l|x))

        sigmoid   -log sigma(beta h)                     Rafailov et al. 2023, arXiv:2305.18290, eq. 7
        hinge     max(0, 1 - beta h)                     Zhao et al. 2023, arXiv:2305.10425: SLiC's hinge, here of h
        ipo       (h - 1 / (2 beta))^2                   Azar et al. 2023, arXiv:2310.12036, eq. 17, beta being their tau

    averaged over pairs. SLiC itself has no ref; its hinge of h is the "hinge-norm" of Liu et al. 2023, arXiv:2309.06657. `ipo`
    has sums over tokens, as its equation says; TRL first divides the two log-ratios by the tokens of their answers, so that the
    same beta means something else there. With `label_smoothing` e the sigmoid is the conservative DPO of Mitchell 2023,

        -(1 - e) log sigma(beta h) - e log sigma(-beta h)

    and with `sft_weight` a the term `sft`, -log pi(w|x) / |w|, is added a times (Pang et al. 2024, arXiv:2404.19733; of the
    answer's tokens only, the prompt being given).

    Logged are rewards, beta (log pi - log ref): `chosen_reward`, `rejected_reward`, `reward_margin`, and the share of pairs
    with a positive margin, `reward_accuracy`, ties counting half.
    """

    name: ClassVar[str] = "dpo"
    examples: ClassVar[tuple[type[Example], ...]] = (Preference,)
    reference: ClassVar[bool] = True
    pace: ClassVar[float] = 0.1
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "reward_accuracy": "max", "reward_margin": "max", "chosen_reward": "max", "rejected_reward": "min",
    }  # fmt: skip

    beta: float = 0.1
    """How strongly the model is held near where it began: the smaller, the further it may go."""
    loss: Loss = "sigmoid"
    """sigmoid: DPO; hinge: pairs that are apart by 1 / beta train no more; ipo: all are drawn to 1 / (2 beta) apart."""
    label_smoothing: float = 0.0
    """Share of the pairs taken to be the wrong way round (conservative DPO), below 0.5; with loss sigmoid only."""
    sft_weight: float = 0.0
    """Weight of the likelihood of the better answer, per token of it, beside the loss; 0: none."""

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)
        if self.loss not in get_args(Loss):
            raise UsageError(f"Expected --objective.loss to be one of {', '.join(get_args(Loss))}; got {self.loss!r}.")
        if isinstance(self.label_smoothing, bool) or not 0 <= self.label_smoothing < 0.5:
            raise UsageError(
                f"Expected --objective.label_smoothing to be at least 0 and below 0.5; got {self.label_smoothing}."
            )
        if self.label_smoothing and self.loss != "sigmoid":
            raise UsageError(
                f"Expected --objective.loss sigmoid with --objective.label_smoothing, which no other reads; got {self.loss}."
            )
        check_not_negative("sft_weight", self.sft_weight)

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        """The term `dpo`, and `sft` where it has a weight, summed over pairs.

        Raises:
            TrainingError: the batch's rows are no pairs, or it has no `reference`.
        """
        references = references_of(batch)
        answers = answers_of(model, batch)
        chosen, rejected = (answer.logps - reference for answer, reference in zip(answers, references, strict=True))
        terms = {"dpo": term(self._losses(chosen - rejected))}
        if self.sft_weight:
            terms["sft"] = term(-answers[0].means, self.sft_weight)
        return LossOutput(terms, reward_logs(self.beta * chosen, self.beta * rejected))

    def _losses(self, gains: Tensor) -> Tensor:
        """(P,) loss of each h."""
        import torch.nn.functional as F

        if self.loss == "hinge":
            return F.relu(1 - self.beta * gains)
        if self.loss == "ipo":
            return (gains - 1 / (2 * self.beta)).square()
        right, wrong = F.logsigmoid(self.beta * gains), F.logsigmoid(-self.beta * gains)
        return -(1 - self.label_smoothing) * right - self.label_smoothing * wrong
