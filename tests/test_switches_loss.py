"""Label smoothing: torch's own on full logits, in loss and gradients, in training only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
import transformers as tf

from lightning_ft.builtin import SFT
from lightning_ft.engine import cross_entropy
from lightning_ft.engine.cross_entropy import chunked_nll, summed_cross_entropy
from lightning_ft.engine.head import demote, head_path
from lightning_ft.engine.loss import token_loss
from lightning_ft.errors import UsageError
from lightning_ft.objective import Objective
from lightning_ft.testing.models import tiny_llama
from lightning_ft.types import IGNORE_INDEX, Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from lightning_ft.types import LossOutput
    from tests.conftest import TinyFit

VOCAB, E = 61, 0.2
TINY: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "untied": lambda: tf.LlamaConfig(**TINY, tie_word_embeddings=False),
    "tied": lambda: tf.LlamaConfig(**TINY, tie_word_embeddings=True),
    "softcap": lambda: tf.Gemma2Config(**TINY, final_logit_softcapping=3.0),
    "logit scale": lambda: tf.CohereConfig(**TINY, logit_scale=2.0),
    "bias": lambda: tf.PhiConfig(**{k: v for k, v in TINY.items() if k != "head_dim"}),
}
LENGTHS = (11, 7, 5)


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (3, 2), (100, 4), (100, 100)])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_are_torchs(
    monkeypatch: pytest.MonkeyPatch, chunk: int, block: int, cap: float | None, weighted: bool
) -> None:
    monkeypatch.setattr(cross_entropy, "_block", lambda *_: block)
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(shape).double().requires_grad_() for shape in ((11, 8), (13, 8), (13,)))
    targets, scale = torch.randint(13, (11,)), torch.rand(11).double() if weighted else None
    logits = F.linear(hidden, weight, bias)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    nll = F.cross_entropy(logits, targets, reduction="none", label_smoothing=E)
    expected = (nll if scale is None else nll * scale).sum()
    loss = summed_cross_entropy(hidden, weight, bias, targets, scale, cap=cap, chunk=chunk, smoothing=E)
    torch.testing.assert_close(loss, expected)
    leaves = (hidden, weight, bias)
    torch.testing.assert_close(torch.autograd.grad(loss * 0.7, leaves), torch.autograd.grad(expected * 0.7, leaves))


def test_by_hand() -> None:
    """Logits log 1, log 2, log 5 and target 2: (1 - e) log(8 / 5) + e (log 8 + log 4 + log(8 / 5)) / 3."""
    hidden, weight = torch.ones(1, 1).double(), torch.tensor([[1.0], [2.0], [5.0]]).double().log()
    found = float(chunked_nll(hidden, weight, None, torch.tensor([2]), smoothing=0.3))
    parts = torch.tensor([8.0, 4.0, 8 / 5]).double().log()
    assert found == pytest.approx(float(0.7 * parts[2] + 0.3 * parts.mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(64, 16).to(dtype), torch.randn(301, 16).to(dtype), torch.randint(301, (64,))
    found = chunked_nll(hidden, weight, None, targets, chunk=16, smoothing=E)
    wanted = F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="none", label_smoothing=E)
    torch.testing.assert_close(found, wanted)


def test_without_it_no_further_pass_is_made() -> None:
    """The operations are as many as they were, and two more over the logits with it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
        def __init__(self, seen: list[str]) -> None:
            super().__init__()  # type: ignore[no-untyped-call]  # of torch
            self.seen = seen

        def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
            if any(isinstance(arg, torch.Tensor) and arg.shape == (8, VOCAB) for arg in args):
                self.seen.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    def made(smoothing: float) -> list[str]:
        hidden, weight = torch.randn(8, 4, requires_grad=True), torch.randn(VOCAB, 4)
        seen: list[str] = []
        with Names(seen):
            summed_cross_entropy(hidden, weight, None, torch.randint(VOCAB, (8,)), smoothing=smoothing)
        return seen

    plain, smoothed = made(0.0), made(E)
    assert sorted(smoothed) == sorted([*plain, "mean", "sub_"])


# ---- in models -------------------------------------------------------------------------------------------------------


def make(family: str) -> nn.Module:
    torch.manual_seed(0)
    model: Any = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())  # type: ignore[no-untyped-call]  # of transformers
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8) if p.ndim == 2 else p.add_(torch.randn_like(p), alpha=0.1)  # or all words would be as likely
    found: nn.Module = model.double().train()
    return found


def documents() -> list[tuple[Tensor, Tensor]]:
    """Ids and labels of rows whose first tokens are context."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for length in LENGTHS:
        ids = torch.randint(3, VOCAB, (length,), generator=draw)
        found.append((ids, torch.where(torch.arange(length) < 3, IGNORE_INDEX, ids)))
    return found


def batch_of(rows: list[tuple[Tensor, Tensor]], packed: bool) -> Batch:
    names = tuple(f"a:{i}" for i in range(len(rows)))
    if packed:
        ids, labels = (torch.cat(part)[None] for part in zip(*rows, strict=True))
        borders = (0, *torch.tensor(LENGTHS).cumsum(0).tolist())
        positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
        return Batch(ids, labels, positions, borders, names, lengths=LENGTHS)
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True, padding_value=fill)
        for part, fill in zip(zip(*rows, strict=True), (0, IGNORE_INDEX), strict=True)
    )
    return Batch(ids, labels, torch.arange(ids.shape[1]).expand_as(ids), None, names, lengths=LENGTHS)


def by_torch(model: nn.Module, smoothing: float) -> Tensor:
    total: Any = 0
    for ids, labels in documents():
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], reduction="sum", label_smoothing=smoothing)
    found: Tensor = total
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("way", ["chunked", "selected", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_models_it_is_torchs_on_full_logits(family: str, way: str, packed: bool) -> None:
    model = make(family)
    while head_path(model).name != way:
        demote(model, "the test asked")
    expected = by_torch(model, E)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss, count = token_loss(model, batch_of(documents(), packed), E)
    found = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(loss, expected)
    assert float(count) == sum(LENGTHS) - 3 * len(LENGTHS)
    assert abs(float((expected - by_torch(model, 0.0)).detach())) > 0.01, "smoothing shows"
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # some attention has its softmax in 32 bits


# ---- in runs ---------------------------------------------------------------------------------------------------------


def test_a_run_minimises_the_smoothed_and_measures_the_plain_likelihood(tiny_fit: TinyFit) -> None:
    smoothed, plain = (tiny_fit(label_smoothing=e, learning_rate=1e-30, max_steps=2, eval_every=2) for e in (E, 0.0))
    for step, (micro, *rest) in enumerate(batch.micro for batch in smoothed.batches):
        assert not rest
        logits = tiny_llama()(input_ids=micro.input_ids).logits[:, :-1].flatten(0, 1)
        labels = micro.labels[:, 1:].flatten()
        for run, e in ((smoothed, E), (plain, 0.0)):
            wanted = F.cross_entropy(logits, labels, label_smoothing=e)
            assert run.losses[step] == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert smoothed.validations() == plain.validations()
    for name, gradient in plain.gradients[0].items():
        assert not torch.allclose(smoothed.gradients[0][name], gradient, rtol=1e-3)


@dataclasses.dataclass(frozen=True)
class Bare(Objective):
    """An objective that takes no smoothing."""

    name: ClassVar[str] = "bare"

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        """That of SFT."""
        return SFT()(model, batch)


def test_an_objective_that_smooths_nothing_refuses_it(tiny_fit: TinyFit) -> None:
    expected = r"^Expected --objective to be one that smooths labels with --label_smoothing, got bare, which does not; leave "
    with pytest.raises(UsageError, match=expected):
        tiny_fit(label_smoothing=E, objective=Bare())
    tiny_fit(objective=Bare(), max_steps=1)
