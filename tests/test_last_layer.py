"""The last layer at supervised positions only: the same losses and gradients, fewer positions, and when it stays off."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from lightning_ft.data.collate import pack
from lightning_ft.data.targets import SHAPES, found_ahead, read_positions, supervised
from lightning_ft.engine import last_layer
from lightning_ft.engine.loss import score_rows, token_logps, token_loss
from lightning_ft.engine.recompute import checkpoint_activations
from lightning_ft.engine.verify import verify_last_layer
from lightning_ft.types import IGNORE_INDEX, Batch, Encoded
from tests.test_loss import FAMILIES, TINY, make, padded

SEQ_LENGTHS = (40, 39, 49)


def packed(share: int = 5) -> Batch:
    """Three documents, the last so many tokens of each supervised."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for n, length in enumerate(SEQ_LENGTHS):
        ids = torch.randint(3, TINY["vocab_size"], (length,), generator=draw).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * (length - share) + ids[-share:], f"a:{n}"))
    return found_ahead(pack(rows))


def counted(model: nn.Module) -> list[int]:
    """The positions that the last layer's two modules will be given, call by call."""
    seen: list[int] = []

    def noted(forward: Any, x: Tensor) -> Any:
        seen.append(x.numel() // x.shape[-1])
        return forward(x)

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].numel() // args[0].shape[-1])

    for part in last_layer.parts(model):
        # A hook of the module itself sees the whole input; what is computed is seen by its first product.
        inner: Any = next(m for m in part.modules() if not list(m.children()))
        if inner is part:
            inner.forward = functools.partial(noted, inner.forward)
        else:
            inner.register_forward_pre_hook(note)
    return seen


def gradients(model: nn.Module, batch: Batch) -> list[Tensor]:
    model.zero_grad()
    total, count = token_loss(model, batch)
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("batch", [packed, padded], ids=["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_all_positions(family: str, batch: Any) -> None:
    model, rows = make(family), batch()
    expected = gradients(model, rows)
    said = verify_last_layer(model, rows)
    assert "last layer at these positions only" in said
    found = gradients(model, rows)
    assert len(found) == len(expected)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


def test_it_computes_fewer_positions() -> None:
    model, batch = make("llama"), packed()
    assert verify_last_layer(model, batch)
    seen = counted(model)
    token_loss(model, batch)
    read = supervised(batch).read
    assert read is not None
    assert len(read) < sum(SEQ_LENGTHS) / 4
    assert seen == [len(read)] * 2
    seen.clear()
    token_loss(model, found_ahead(packed(share=38)))  # nearly all are read
    assert set(seen) == {sum(SEQ_LENGTHS)}
    seen.clear()
    model(input_ids=batch.input_ids)
    assert set(seen) == {sum(SEQ_LENGTHS)}, "whoever asks for all logits gets them"


def test_scores_and_log_probabilities_too() -> None:
    model, batch = make("llama"), packed()
    expected = score_rows(model, batch), token_logps(model, batch).detach()
    assert verify_last_layer(model, batch)
    seen = counted(model)
    scores, logps = score_rows(model, batch), token_logps(model, batch).detach()
    assert max(seen) < sum(SEQ_LENGTHS) / 4
    torch.testing.assert_close(logps, expected[1])
    for one, other in zip(scores, expected[0], strict=True):
        assert one == pytest.approx(other)


def test_adapters_in_the_last_layer_train() -> None:
    model = get_peft_model(make("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    expected = gradients(model, packed())
    assert verify_last_layer(model, packed())
    for e, f in zip(expected, gradients(model, packed()), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


def test_virtual_tokens_in_front_are_computed_whole() -> None:
    peft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(make("llama"), peft).double()
    expected = gradients(model, padded())
    assert verify_last_layer(model, padded())
    for e, f in zip(expected, gradients(model, padded()), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


def test_a_model_that_reads_other_positions_is_left_alone() -> None:
    """Here the final norm mixes each position with the one before."""
    model: Any = make("llama")
    model.model.norm.register_forward_pre_hook(lambda _, args: (args[0] + args[0].roll(1, dims=1),))
    before = gradients(model, packed())
    assert verify_last_layer(model, packed()) == ""
    for e, f in zip(before, gradients(model, packed()), strict=True):
        assert torch.equal(e, f)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_run_again_run_at_the_same_positions(family: str) -> None:
    """In the backward pass, when the block is left."""
    model = make(family)
    expected = gradients(model, packed())
    checkpoint_activations(model)
    model.get_input_embeddings().weight.requires_grad_()
    assert verify_last_layer(model, packed())
    seen = counted(model)
    for e, f in zip(expected, gradients(model, packed()), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)
    assert len(seen) == 4, "both modules, twice"
    assert max(seen) < sum(SEQ_LENGTHS) / 4


def test_experts_get_the_same_tokens() -> None:
    """In float32, as torch has no products of experts in float64."""
    torch.manual_seed(0)
    config = tf.MixtralConfig(**TINY, num_local_experts=2, num_experts_per_tok=1)
    model = tf.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # of transformers
    expected = gradients(model, packed())
    assert verify_last_layer(model, packed())
    for e, f in zip(expected, gradients(model, packed()), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-6)


def test_modules_are_as_before_after_an_error() -> None:
    model = make("llama")
    parts = last_layer.parts(model)
    with pytest.raises(RuntimeError, match="no"), last_layer.only_at(parts, torch.tensor([1]), 4):
        raise RuntimeError("no")
    assert all("forward" not in vars(part) for part in parts)


@pytest.mark.parametrize(("read", "total"), [(1, 7), (5, 64), (31, 64), (40, 64), (56, 64), (700, 2048)])
def test_positions_that_are_read_are_among_those_computed(read: int, total: int) -> None:
    index = torch.randperm(total, generator=torch.Generator().manual_seed(read))[:read].sort().values
    found = read_positions(index, total)
    if found is None:
        assert 8 * (read + -(-total // SHAPES)) > 5 * total
        return
    assert set(index.tolist()) <= set(found.tolist())
    assert found.tolist() == sorted(set(found.tolist()))
    assert 8 * len(found) <= 5 * total
    assert len(found) % -(-total // SHAPES) == 0


def test_nothing_read_is_no_reason_to_compute_nothing() -> None:
    """Every parameter shall get its gradient, if of zeros."""
    assert read_positions(torch.empty(0, dtype=torch.int64), 64) is None
