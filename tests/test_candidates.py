from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from lightning_ft.candidates import MOST_LOGITS, candidate_likelihoods, candidate_scores
from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.decoding import Sampling
from lightning_ft.errors import UsageError
from lightning_ft.metric import Metric, RowMetric
from lightning_ft.scoring import Costs, score_examples
from lightning_ft.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from lightning_ft.types import IGNORE_INDEX, Classified, Conversation, Encoded, Message, ScoredRow, Text

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS = ("refund", "a refund please", "x", "r\u00e9clamation")


class FirstChoice(RowMetric):
    """Whether the likeliest candidate is the reference."""

    name = "first_choice"
    reads = "candidates"

    def score(self, row: ScoredRow) -> float:
        found = dict(row.candidates or {})
        return float(bool(found) and max(found, key=found.__getitem__) in row.references)


def encoded(*labels: str, text: str = "Where is my money?") -> list[Encoded]:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, Template.resolve("chat", tokenizer), 200)
    examples = [Conversation((Message("user", text), Message("assistant", label))) for label in labels]
    return encoder.encode(examples, ["f:1"] * len(examples))


def still(make: Callable[[], Any]) -> Any:
    model = make()
    model.eval()
    return model


def plain(model: Any, variant: Encoded) -> float:
    """One row by itself, as a textbook has it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([variant.input_ids])).logits[0, :-1]
    labels = torch.tensor(variant.labels[1:])
    return -float(F.cross_entropy(logits, labels, reduction="sum"))


@pytest.mark.parametrize("whole", [False, True])
def test_a_variant_of_the_most_likely_tokens_is_told(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if whole:
        monkeypatch.setattr("lightning_ft.candidates._begun", lambda *_: None)
    model, prompt = still(tiny_llama), [5, 6, 7, 8]
    with torch.no_grad():
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, eos_token_id=None)[0].tolist()
    last = [*greedy[:-1], (greedy[-1] + 1) % 256]
    first = [*prompt, (greedy[4] + 1) % 256, *greedy[5:]]
    rows = [Encoded(ids, [IGNORE_INDEX] * 4 + ids[4:], "f:1") for ids in (greedy, last, greedy[:5], first)]
    assert [right for _, right in candidate_scores(model, rows)] == [True, False, True, False]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("whole", [False, True])
def test_equals_each_row_by_itself(make: Callable[[], Any], whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the beginning computed once, in several pieces, and for models whose cache cannot be repeated."""
    model = still(make)
    variants = encoded(*LABELS)
    if whole:
        monkeypatch.setattr("lightning_ft.candidates._begun", lambda *_: None)
    expected = [plain(model, variant) for variant in variants]
    assert candidate_likelihoods(model, variants) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("lightning_ft.candidates.MOST_LOGITS", 1)
    assert candidate_likelihoods(model, variants) == pytest.approx(expected, rel=1e-5)
    assert MOST_LOGITS > 1


def test_a_soft_prompt_stands_before_every_variant() -> None:
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(still(tiny_llama), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    variants = encoded(*LABELS)
    expected = []
    for variant in variants:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([variant.input_ids])).logits[0, 4:-1]
        expected.append(-float(F.cross_entropy(logits, torch.tensor(variant.labels[1:]), reduction="sum")))
    assert candidate_likelihoods(model, variants) == pytest.approx(expected, rel=1e-5)


def test_the_beginning_is_computed_once() -> None:
    model, seen = still(tiny_llama), 0

    def count(_: object, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal seen
        seen += kwargs["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)
    variants = encoded(*LABELS, text="word " * 20)
    candidate_likelihoods(model, variants)
    longest = max(len(v.input_ids) for v in variants)
    assert seen < 2 * longest
    assert sum(len(v.input_ids) for v in variants) > 3 * longest


def test_one_candidate_and_none_supervised() -> None:
    model = still(tiny_llama)
    (only,) = encoded("refund")
    assert candidate_likelihoods(model, [only]) == pytest.approx([plain(model, only)], rel=1e-5)
    nothing = Encoded(only.input_ids, [-100] * len(only.labels), "f:1")
    assert candidate_likelihoods(model, [nothing]) == [0.0]


def score(metrics: list[type[Metric]], *examples: Classified | Text, limit: int = 200, **options: Any) -> list[ScoredRow]:
    tokenizer = tiny_tokenizer()
    template = Template.resolve("chat", tokenizer)
    return score_examples(
        tiny_llama(), Encoder(tokenizer, template, limit), template, tokenizer, examples,
        [f"f:{i}" for i in range(len(examples))], metrics=metrics, sampling=Sampling(max_new_tokens=2), **options,
    )  # fmt: skip


def test_rows_get_the_likelihoods_of_all_candidates() -> None:
    costs = Costs()
    rows = score([FirstChoice], Classified("Money?", "refund"), Text("no question"), candidates=LABELS, costs=costs)
    first, second = rows
    assert first.candidates is not None
    assert list(first.candidates) == list(LABELS)
    (given,) = encoded("refund", text="Money?")
    assert first.candidates["refund"] == pytest.approx(plain(still(tiny_llama), given), rel=1e-5)
    assert first.candidates["refund"] == pytest.approx(-first.nll, rel=1e-5)
    assert second.candidates is None
    assert costs.likelihood_tokens > 0
    assert costs.generated_tokens == 0
    assert costs.likelihood_seconds > 0


def test_a_row_without_room_for_its_answer_is_wrong_not_dropped() -> None:
    rows = score([FirstChoice], Classified("long " * 100, "refund"), Classified("q", "refund"), candidates=LABELS, limit=40)
    assert rows[0].candidates == {}
    assert FirstChoice().score(rows[0]) == 0


def test_metrics_of_candidates_need_some() -> None:
    with pytest.raises(UsageError, match="fixed set of answers"):
        score([FirstChoice], Classified("q", "refund"))
