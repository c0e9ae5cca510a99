"""Each objective against the equation of its paper and against TRL's own loss code, in float64, on given log-probabilities."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_objectives.dpo import DPO
from lightning_ft_objectives.orpo import ORPO, log_odds
from lightning_ft_objectives.simpo import SimPO
from torch import Tensor, nn

from lightning_ft.data.collate import pad
from lightning_ft.types import IGNORE_INDEX, Encoded, LossOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_ft.objective import Objective

PEER: dict[str, Any] = json.loads((Path(__file__).parent / "trl.json").read_text(encoding="utf-8"))
"""Losses by TRL for random pairs; `of` says by which of its functions."""


@dataclass(frozen=True)
class Pair:
    """Log-probabilities of both answers, under the model and under the reference, and their tokens."""

    chosen: float
    rejected: float
    chosen_reference: float = 0.0
    rejected_reference: float = 0.0
    chosen_tokens: int = 1
    rejected_tokens: int = 1

    @property
    def gain(self) -> float:
        """h of the equations."""
        return (self.chosen - self.chosen_reference) - (self.rejected - self.rejected_reference)


PAIRS = [Pair(**pair) for pair in PEER["pairs"]]
HAND = [Pair(-2, -6, -3, -5, 2, 4), Pair(-9, -1, -9, -4, 3, 1)]
"""h is 1 - (-1) = 2 and 0 - 3 = -3; per token -1 against -1.5 and -3 against -1."""


class Told(nn.Module):
    """A model of two tokens that gives each row the log-probability it is told, evenly over the row's tokens, which are 1."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        rows = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        self.logps = nn.Parameter(torch.tensor(rows, dtype=torch.float64))
        self.tokens = torch.tensor([n for pair in pairs for n in (pair.chosen_tokens, pair.rejected_tokens)])

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        """Logits (B, T, 2)."""
        ones = (self.logps / self.tokens)[:, None].expand(input_ids.shape)
        return SimpleNamespace(logits=torch.stack([torch.log(-torch.expm1(ones)), ones], -1))


def outcome(objective: Objective, pairs: Sequence[Pair]) -> tuple[LossOutput, Told]:
    """What the objective makes of the pairs, behind a prompt of two tokens."""
    model, prompt = Told(pairs), 2
    rows = [
        Encoded([0] * prompt + [1] * n, [IGNORE_INDEX] * prompt + [1] * n, f"rows.jsonl:{i // 2 + 1}")
        for i, n in enumerate(model.tokens.tolist())
    ]
    batch = pad(rows, 0)
    batch.together = 2
    if objective.reference:
        references = [side for pair in pairs for side in (pair.chosen_reference, pair.rejected_reference)]
        batch.reference = torch.tensor(references, dtype=torch.float64)
    return objective(model, batch), model


def loss_of(objective: Objective, pairs: Sequence[Pair]) -> float:
    """Its weighted terms, per pair."""
    return sum(term.weight * term.sum.item() / float(term.count) for term in outcome(objective, pairs)[0].terms.values())


def logged(objective: Objective, pairs: Sequence[Pair], name: str) -> float:
    """A log of it, per pair."""
    term = outcome(objective, pairs)[0].logs[name]
    return term.sum.item() / float(term.count)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(pair: Pair) -> tuple[float, float]:
    """Eq. 3 and 4 of ORPO."""
    chosen, rejected = math.exp(pair.chosen / pair.chosen_tokens), math.exp(pair.rejected / pair.rejected_tokens)
    return chosen / (1 - chosen), rejected / (1 - rejected)


EQUATIONS: dict[str, tuple[Objective, Callable[[Pair], float]]] = {
    "sigmoid": (DPO(beta=0.3), lambda p: -math.log(sigmoid(0.3 * p.gain))),
    "hinge": (DPO(beta=0.3, loss="hinge"), lambda p: max(0.0, 1 - 0.3 * p.gain)),
    "ipo": (DPO(beta=0.3, loss="ipo"), lambda p: (p.gain - 1 / (2 * 0.3)) ** 2),
    "conservative": (
        DPO(beta=0.3, label_smoothing=0.2),
        lambda p: -0.8 * math.log(sigmoid(0.3 * p.gain)) - 0.2 * math.log(sigmoid(-0.3 * p.gain)),
    ),
    "with likelihood": (
        DPO(beta=0.3, sft_weight=0.7),
        lambda p: -math.log(sigmoid(0.3 * p.gain)) - 0.7 * p.chosen / p.chosen_tokens,
    ),
    "simpo": (
        SimPO(beta=2.5, gamma=1.3),
        lambda p: -math.log(sigmoid(2.5 / p.chosen_tokens * p.chosen - 2.5 / p.rejected_tokens * p.rejected - 1.3)),
    ),
    "orpo": (
        ORPO(beta=0.25),
        lambda p: -p.chosen / p.chosen_tokens - 0.25 * math.log(sigmoid(math.log(odds(p)[0] / odds(p)[1]))),
    ),
}
NAMES = tuple(EQUATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_paper(name: str) -> None:
    objective, equation = EQUATIONS[name]
    for pair in (*PAIRS, *HAND):
        assert loss_of(objective, [pair]) == pytest.approx(equation(pair), rel=1e-9, abs=1e-12)
    assert loss_of(objective, PAIRS) == pytest.approx(sum(map(equation, PAIRS)) / len(PAIRS), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_paper_s_loss(name: str) -> None:
    objective, equation = EQUATIONS[name]
    output, model = outcome(objective, PAIRS)
    sum(term.weight * term.sum for term in output.terms.values()).backward()  # type: ignore[union-attr]  # there are terms
    assert model.logps.grad is not None
    found, step = model.logps.grad.view(-1, 2).tolist(), 1e-6
    for pair, (chosen, rejected) in zip(PAIRS, found, strict=True):
        for side, gradient in (("chosen", chosen), ("rejected", rejected)):
            up, down = (Pair(**{**vars(pair), side: getattr(pair, side) + by}) for by in (step, -step))
            assert gradient == pytest.approx((equation(up) - equation(down)) / (2 * step), rel=1e-5, abs=1e-7)


def test_by_hand() -> None:
    """beta 0.5 times h of 2 and -3 is 1 and -1.5; -log sigma(1) = 0.313262, -log sigma(-1.5) = 1.701413."""
    assert loss_of(DPO(beta=0.5), HAND) == pytest.approx((0.3132617 + 1.7014133) / 2, abs=1e-7)
    assert loss_of(DPO(beta=0.5, loss="hinge"), HAND) == pytest.approx((0 + 2.5) / 2)
    assert loss_of(DPO(beta=0.5, loss="ipo"), HAND) == pytest.approx((1 + 16) / 2)  # (2 - 1)^2 and (-3 - 1)^2
    smoothed = 0.75 * 0.3132617 + 0.25 * 1.3132617 + 0.75 * 1.7014133 + 0.25 * 0.2014133
    assert loss_of(DPO(beta=0.5, label_smoothing=0.25), HAND) == pytest.approx(smoothed / 2, abs=1e-7)
    assert loss_of(SimPO(beta=2, gamma=1), HAND) == pytest.approx((math.log(2) + 5.0067153) / 2, abs=1e-7)  # of 0 and -5
    output, _ = outcome(DPO(beta=0.5, sft_weight=0.1), HAND)
    assert {name: (term.count, term.weight, term.per) for name, term in output.terms.items()} == {
        "dpo": (2, 1, "rows"), "sft": (2, 0.1, "rows"),
    }  # fmt: skip
    assert [term.sum.item() for term in output.terms.values()] == pytest.approx([2.0146750, 1 + 3], abs=1e-7)


def test_what_is_logged() -> None:
    def of(objective: Objective) -> dict[str, float]:
        return {name: round(term.sum.item(), 9) for name, term in outcome(objective, HAND)[0].logs.items()}

    for loss in ("sigmoid", "hinge", "ipo"):  # 0.5 (1 + 0), 0.5 (-1 + 3), 1 - 1.5, the first pair
        made = of(DPO(beta=0.5, loss=loss))
        assert made == {"chosen_reward": 0.5, "rejected_reward": 1.0, "reward_margin": -0.5, "reward_accuracy": 1.0}
    made = of(SimPO(beta=2, gamma=1))  # 2 (-1 - 3), 2 (-1.5 - 1), 1 - 4
    assert made == {"chosen_reward": -8.0, "rejected_reward": -5.0, "reward_margin": -3.0, "reward_accuracy": 1.0}
    ratio = sum(math.log(chosen / rejected) for chosen, rejected in map(odds, HAND))
    assert of(ORPO()) == {"log_odds_ratio": round(ratio, 9), "reward_accuracy": 1.0}


@pytest.mark.parametrize("objective", [DPO(), DPO(loss="hinge"), SimPO(), ORPO()], ids=["dpo", "hinge", "simpo", "orpo"])
def test_a_tie_is_half_right(objective: Objective) -> None:
    assert logged(objective, [Pair(-2, -2, -1, -1)], "reward_accuracy") == 0.5


def test_smoothing_of_0_is_dpo_and_without_weight_there_is_no_likelihood() -> None:
    plain, conservative = (outcome(objective, PAIRS)[0] for objective in (DPO(), DPO(label_smoothing=0.0, sft_weight=0.0)))
    assert plain.terms.keys() == conservative.terms.keys() == {"dpo"}
    assert torch.equal(plain.terms["dpo"].sum, conservative.terms["dpo"].sum)
    assert loss_of(DPO(label_smoothing=0.1), PAIRS) != loss_of(DPO(), PAIRS)


def test_a_model_that_is_its_reference_has_the_loss_ln_2() -> None:
    still = [Pair(p.chosen, p.rejected, p.chosen, p.rejected, p.chosen_tokens, p.rejected_tokens) for p in PAIRS]
    for objective in (DPO(), DPO(beta=3), DPO(label_smoothing=0.4)):
        assert loss_of(objective, still) == pytest.approx(math.log(2), abs=1e-12)


# ---- TRL ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "conservative", "simpo"])
def test_the_loss_is_that_of_trl(name: str) -> None:
    theirs = PEER["losses"][name]
    options: dict[str, Any] = {key: theirs[key] for key in ("beta", "label_smoothing", "gamma") if key in theirs}
    if name not in ("conservative", "simpo"):
        options["loss"] = name
    objective: Objective = SimPO(**options) if name == "simpo" else DPO(**options)
    for pair, expected in zip(PAIRS, theirs["loss"], strict=True):
        assert loss_of(objective, [pair]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "simpo"])
def test_rewards_are_those_of_trl(name: str) -> None:
    theirs = PEER["losses"][name]
    objective: Objective = SimPO(theirs["beta"], theirs["gamma"]) if name == "simpo" else DPO(theirs["beta"])
    logs = [log for log in objective.measures if log in theirs]
    assert len(logs) == (2 if name == "simpo" else 4)
    for log in logs:
        for pair, expected in zip(PAIRS, theirs[log], strict=True):
            assert logged(objective, [pair], log) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_odds_ratio_and_the_likelihood_are_those_of_trl() -> None:
    theirs, likelihood = PEER["losses"]["orpo"], PEER["losses"]["sft"]["loss"]
    for i, pair in enumerate(PAIRS):
        output, _ = outcome(ORPO(theirs["beta"]), [pair])
        term = output.terms["odds_ratio"]
        assert term.weight * term.sum.item() == pytest.approx(theirs["loss"][i], rel=1e-6, abs=1e-6)
        assert output.logs["log_odds_ratio"].sum.item() == pytest.approx(theirs["log_odds_ratio"][i], rel=1e-6, abs=1e-6)
        for made in (output, outcome(DPO(sft_weight=0.5), [pair])[0]):
            assert made.terms["sft"].sum.item() == pytest.approx(likelihood[i], rel=1e-6)


def test_ipo_of_trl_s_dpo_trainer_divides_by_tokens_and_ours_does_not() -> None:
    theirs = PEER["losses"]["ipo_per_token"]
    beta, differing = theirs["beta"], 0
    for pair, expected in zip(PAIRS, theirs["loss"], strict=True):
        chosen = (pair.chosen - pair.chosen_reference) / pair.chosen_tokens
        rejected = (pair.rejected - pair.rejected_reference) / pair.rejected_tokens
        assert expected == pytest.approx((chosen - rejected - 1 / (2 * beta)) ** 2, rel=1e-6)
        differing += not math.isclose(loss_of(DPO(beta, loss="ipo"), [pair]), expected, rel_tol=1e-3)
    assert differing > len(PAIRS) / 2


# ---- odds near certainty ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_are_finite_wherever_a_log_probability_may_be(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    logps = torch.tensor([eps, 0, -eps / 2, -eps, -2 * eps, -1e-5, -1, -50, -1e4], dtype=dtype, requires_grad=True)
    found = log_odds(logps)
    found.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert logps.grad is not None
    assert bool(found.isfinite().all())
    assert bool(logps.grad.isfinite().all())
    assert bool((found.diff() <= 0).all()), "the likelier, the higher"
    assert logps.grad.tolist()[:3] == [0, 0, 0], "a sure answer has nothing to gain"
    assert bool((logps.grad[3:] >= 1).all())


def test_log_odds_keep_their_digits_near_certainty() -> None:
    """log(p / (1 - p)) of log p = -1e-6 is -log(1e-6) but for terms of 1e-6: 1 - p = 1e-6 - 5e-13 + ..."""
    for given in (-1e-6, -3e-5, -1e-3, -0.5, -5.0):
        expected = given - math.log(-math.expm1(given))
        assert float(log_odds(torch.tensor(given))) == pytest.approx(expected, rel=1e-6)
