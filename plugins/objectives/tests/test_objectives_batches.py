"""Objectives on batches of a tiny model: padded, packed, cut in halves, muted; contract, training, refusals, preset."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from lightning_ft_objectives import register_objectives
from lightning_ft_objectives.dpo import DPO
from lightning_ft_objectives.orpo import ORPO
from lightning_ft_objectives.simpo import SimPO

from lightning_ft.cli.yamlfile import find_config, presets
from lightning_ft.config import TrainingConfig
from lightning_ft.data.collate import muted, pack, pad
from lightning_ft.engine.loss import token_logps
from lightning_ft.errors import TrainingError, UsageError
from lightning_ft.testing import check_objective, tiny_gpt2, tiny_llama
from lightning_ft.types import IGNORE_INDEX, Encoded, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lightning_ft.objective import Objective
    from lightning_ft.types import Batch, LossOutput

LENGTHS = ((7, 3), (2, 9), (5, 5), (1, 4))
"""Tokens of the better and of the worse answer of each pair."""
OBJECTIVES: dict[str, Objective] = {
    "dpo": DPO(),
    "hinge": DPO(loss="hinge"),
    "ipo": DPO(loss="ipo"),
    "conservative": DPO(label_smoothing=0.1),
    "with likelihood": DPO(sft_weight=1.0),
    "simpo": SimPO(),
    "orpo": ORPO(),
}
every = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES))


def encoded() -> list[Encoded]:
    """Rows of pairs, each behind a prompt of its own that is not trained."""
    generator, rows = torch.Generator().manual_seed(3), []
    for i, lengths in enumerate(LENGTHS):
        prompt = torch.randint(32, 200, (3 + i,), generator=generator).tolist()
        for n in lengths:
            answer = torch.randint(32, 200, (n,), generator=generator).tolist()
            rows.append(Encoded(prompt + answer, [IGNORE_INDEX] * len(prompt) + answer, f"rows.jsonl:{i + 1}"))
    return rows


def as_pairs(batch: Batch, reference: PreTrainedModel | None = None) -> Batch:
    """The batch as one of pairs, with what another tiny model makes of them (None: one of another seed)."""
    batch.together = 2
    with torch.no_grad():
        batch.reference = token_logps(tiny_llama(1) if reference is None else reference, batch)
    return batch


def loss_of(output: LossOutput) -> torch.Tensor:
    """The loss of a step that has only this micro-batch."""
    return torch.stack([term.weight * term.sum / term.count for term in output.terms.values()]).sum()


@every
def test_contract(objective: Objective) -> None:
    check_objective(objective, whole=as_pairs(pad(encoded(), 256)))


def test_what_is_registered() -> None:
    found = {cls.name: cls for cls in register_objectives()}
    assert found == {"dpo": DPO, "simpo": SimPO, "orpo": ORPO}
    for cls in found.values():
        assert cls.examples == (Preference,)
        assert cls.pace == 0.1
        assert not cls.smooths(), "label smoothing over the vocabulary is another thing"
        output = cls()(tiny_llama(), as_pairs(pad(encoded(), 256)))
        assert set(cls.measures) == set(output.logs)
    assert [cls.name for cls in found.values() if cls.reference] == ["dpo"]


@every
def test_the_loss_of_a_model_is_that_of_its_log_probabilities(objective: Objective) -> None:
    """From whole logits in float64 and the equations once more."""
    model, batch = tiny_llama().double(), as_pairs(pad(encoded(), 256), tiny_llama(1).double())
    with torch.no_grad():
        logps = F.log_softmax(model(input_ids=batch.input_ids).logits[:, :-1], -1)
    labels = batch.labels[:, 1:]
    mask = labels != IGNORE_INDEX
    sums = (logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * mask).sum(1)
    assert batch.reference is not None
    w, l = sums.view(-1, 2).unbind(1)  # noqa: E741  # the papers' letters
    gain = w - l - batch.reference[0::2] + batch.reference[1::2]
    mean_w, mean_l = (sums / mask.sum(1)).view(-1, 2).unbind(1)
    odds_w, odds_l = (p / (1 - p) for p in (mean_w.exp(), mean_l.exp()))
    expected = {
        "dpo": -(0.1 * gain).sigmoid().log(),
        "hinge": (1 - 0.1 * gain).clamp(min=0),
        "ipo": (gain - 5) ** 2,
        "conservative": -0.9 * (0.1 * gain).sigmoid().log() - 0.1 * (-0.1 * gain).sigmoid().log(),
        "with likelihood": -(0.1 * gain).sigmoid().log() - mean_w,
        "simpo": -(2 * mean_w - 2 * mean_l - 1).sigmoid().log(),
        "orpo": -mean_w - 0.1 * (odds_w / odds_l).log().sigmoid().log(),
    }
    name = next(name for name, one in OBJECTIVES.items() if one is objective)
    assert loss_of(objective(model, batch)).item() == pytest.approx(expected[name].mean().item(), rel=1e-9)


@every
@pytest.mark.parametrize("length", [None, 96], ids=["whole", "filled up"])
def test_packed_is_padded(objective: Objective, length: int | None) -> None:
    padded, packed = (as_pairs(batch) for batch in (pad(encoded(), 256), pack(encoded(), length, 256)))
    assert packed.documents is not None
    assert (len(packed.documents) - 1 == len(packed.rows)) == (length is None)
    outputs, gradients = [], []
    for batch in (padded, packed):
        model = tiny_llama()
        output = objective(model, batch)
        loss_of(output).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        outputs.append({**output.terms, **output.logs})
        gradients.append([p.grad for p in model.parameters()])
    for name, term in outputs[0].items():
        assert outputs[1][name].count == term.count == len(LENGTHS)
        # Float32 resolves a sum of log-probabilities of some 50 nats to 4e-6, which `ipo` multiplies.
        assert outputs[1][name].sum.item() == pytest.approx(term.sum.item(), rel=1e-6, abs=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * max(1.0, float(a.abs().max())) if a is not None else 0)


@every
@pytest.mark.parametrize("kind", ["muted", "muted and packed", "without rows"])
def test_a_batch_that_counts_nowhere_is_exactly_0(objective: Objective, kind: str) -> None:
    batch = pack(encoded(), 96, 256) if "packed" in kind else pad(encoded()[:3], 256)
    if kind == "without rows":
        batch.rows = ()
    else:
        muted(batch)
    model = tiny_llama()
    output = objective(model, batch)
    assert output.terms.keys() == objective(model, as_pairs(pad(encoded(), 256))).terms.keys()
    assert set(output.logs) == set(objective.measures)
    for term in (*output.terms.values(), *output.logs.values()):
        assert term.sum.item() == 0
        assert term.count == 0
    torch.stack([term.weight * term.sum for term in output.terms.values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} keeps no rank in step"
        assert not parameter.grad.any()


@every
def test_training_tells_the_answers_apart(objective: Objective) -> None:
    model = tiny_llama()
    batch = as_pairs(pad(encoded(), 256), model)
    if objective.reference:
        first = objective(model, batch)
        start = {"hinge": 1.0, "ipo": 25.0}.get(getattr(objective, "loss", ""), math.log(2))
        assert (first.terms["dpo"].sum / first.terms["dpo"].count).item() == pytest.approx(start, abs=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3 if objective is OBJECTIVES["ipo"] else 1e-2)
    margin = "log_odds_ratio" if isinstance(objective, ORPO) else "reward_margin"
    losses, margins = [], []
    for _ in range(20):
        output = objective(model, batch)
        loss = loss_of(output)
        losses.append(loss.item())
        margins.append(output.logs[margin].sum.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    assert losses[-1] < losses[0]
    assert margins[-1] > margins[0]


def test_a_model_whose_head_is_tied_is_trained_the_same_way() -> None:
    model = tiny_gpt2()
    output = DPO()(model, as_pairs(pad(encoded(), 256), tiny_gpt2()))
    assert loss_of(output).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("objective", [DPO(), SimPO(), ORPO()], ids=["dpo", "simpo", "orpo"])
def test_rows_that_are_no_pairs_are_a_bug(objective: Objective) -> None:
    alone, odd = as_pairs(pad(encoded(), 256)), as_pairs(pad(encoded()[:3], 256))
    alone.together = 1
    for batch, said in ((alone, "8 rows with together 1"), (odd, "3 rows with together 2")):
        with pytest.raises(TrainingError, match=f"Expected a batch of pairs.*got {said}; this is a bug"):
            objective(tiny_llama(), batch)


@pytest.mark.parametrize(("reference", "said"), [(None, "none"), (torch.zeros(4), r"a tensor of shape \(4,\)")])
def test_a_missing_reference_is_a_bug(reference: torch.Tensor | None, said: str) -> None:
    batch = as_pairs(pad(encoded(), 256))
    batch.reference = reference
    with pytest.raises(TrainingError, match=f"each of 8 rows as `reference`, got {said}; this is a bug"):
        DPO()(tiny_llama(), batch)
    for objective in (SimPO(), ORPO()):
        objective(tiny_llama(), batch)


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (DPO, {"beta": 0}, "--objective.beta to be a number above 0; got 0"),
        (DPO, {"beta": math.inf}, "--objective.beta to be a number above 0; got inf"),
        (DPO, {"beta": math.nan}, "--objective.beta to be a number above 0; got nan"),
        (DPO, {"beta": True}, "--objective.beta to be a number above 0; got True"),
        (DPO, {"loss": "ppo"}, "--objective.loss to be one of sigmoid, hinge, ipo; got 'ppo'"),
        (DPO, {"label_smoothing": 0.5}, "--objective.label_smoothing to be at least 0 and below 0.5; got 0.5"),
        (DPO, {"label_smoothing": -0.1}, "--objective.label_smoothing to be at least 0 and below 0.5; got -0.1"),
        (DPO, {"label_smoothing": 0.1, "loss": "ipo"}, "--objective.loss sigmoid with --objective.label_smoothing"),
        (DPO, {"label_smoothing": 0.1, "loss": "hinge"}, "--objective.loss sigmoid with --objective.label_smoothing"),
        (DPO, {"sft_weight": -1}, "--objective.sft_weight to be a number of at least 0; got -1"),
        (DPO, {"sft_weight": math.inf}, "--objective.sft_weight to be a number of at least 0; got inf"),
        (SimPO, {"beta": -2.0}, "--objective.beta to be a number above 0; got -2.0"),
        (SimPO, {"gamma": -0.5}, "--objective.gamma to be a number of at least 0; got -0.5"),
        (ORPO, {"beta": 0.0}, "--objective.beta to be a number above 0; got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(cls: type[Objective], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^Expected {said}"):
        cls(**options)


def test_the_preset() -> None:
    path = presets()["dpo"]
    assert path.parent.parent.name == "lightning_ft_objectives"
    values = dict(find_config("dpo").values)
    assert values["objective"] == DPO.name
    assert values["dropout"] == 0
    config = TrainingConfig.from_dict(values | {"model": "embedded", "data": ["rows.jsonl"]})
    assert all(getattr(config, key) == value for key, value in values.items())
    assert all("  # " in line for line in path.read_text(encoding="utf-8").splitlines()[1:]), "each key has its reason"
