"""The loss on selected positions against full-logits cross entropy: values, gradients, families, adapters, memory."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ft.data.targets import found_ahead, supervised
from lightning_ft.engine.loss import head_path, score_rows, token_logps, token_loss
from lightning_ft.engine.model import base_model
from lightning_ft.engine.verify import verify_head
from lightning_ft.types import IGNORE_INDEX, Batch

VOCAB = 97
TINY: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**TINY, tie_word_embeddings=False),
    "llama-tied": lambda: tf.LlamaConfig(**TINY, tie_word_embeddings=True),
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "gemma2-capped": lambda: tf.Gemma2Config(**TINY, final_logit_softcapping=0.5),
    "granite-scaled": lambda: tf.GraniteConfig(**TINY, logits_scaling=3.0),
    "cohere-scaled": lambda: tf.CohereConfig(**TINY, logit_scale=0.25),
    "qwen3": lambda: tf.Qwen3Config(**TINY),
    "phi-bias": lambda: tf.PhiConfig(**{k: v for k, v in TINY.items() if k != "head_dim"}),
}


def from_config(family: str) -> tf.PreTrainedModel:
    model: tf.PreTrainedModel = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())  # type: ignore[no-untyped-call]  # of transformers
    return model


def make(family: str, seed: int = 0) -> tf.PreTrainedModel:
    torch.manual_seed(seed)
    model = from_config(family).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)  # transformers starts biases at 0, where a mistake would not show
    model.train()
    return model


def padded(seed: int = 0, weighted: bool = False) -> Batch:
    """Three rows of 11, 7 and 5 tokens with prompts of different lengths; the second has an island of targets."""
    draw = torch.Generator().manual_seed(seed)
    lengths = (11, 7, 5)
    ids = torch.randint(3, VOCAB, (3, 11), generator=draw)
    labels = ids.clone()
    for row, (length, prompt) in enumerate(zip(lengths, (4, 5, 0), strict=True)):
        ids[row, length:] = 0
        labels[row, length:] = IGNORE_INDEX
        labels[row, :prompt] = IGNORE_INDEX
    labels[1, 2] = ids[1, 2]
    weights = torch.rand(3, 11, generator=draw) + 0.5 if weighted else None
    positions = torch.arange(11).expand(3, 11)
    return Batch(ids, labels, positions, None, ("a:1", "a:2", "a:3"), weights=weights, lengths=lengths)


def full_nll(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T - 1) nll of every target by the plain way, 0 where there is none."""
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, -batch.input_ids.shape[1] :]
    shape = (len(batch.input_ids), -1)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="none").view(shape)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def present(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad


def assert_same_as_full(model: nn.Module, batch: Batch) -> None:
    weights = torch.ones_like(batch.labels, dtype=torch.float64) if batch.weights is None else batch.weights.double()
    expected = (full_nll(model, batch) * weights[:, 1:]).sum()
    wanted = gradients(model, expected)
    loss, total = token_loss(model, batch)
    found = gradients(model, loss)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(total.double(), weights[:, 1:][batch.labels[:, 1:] != IGNORE_INDEX].sum(), rtol=1e-6, atol=0)
    assert any(grad is not None and grad.any() for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_full_logits(family: str, weighted: bool) -> None:
    model = make(family)
    assert head_path(model).name == "chunked"
    assert_same_as_full(model, padded(weighted=weighted))


@pytest.mark.parametrize("family", FAMILIES)
def test_selected_and_full_ways_are_equal_too(family: str) -> None:
    from lightning_ft.engine.head import demote

    model = make(family)
    for expected in ("selected", "full"):
        assert demote(model, "the test asked").name == expected
        assert_same_as_full(model, padded())


def test_only_supervised_positions_are_targets() -> None:
    batch = padded()
    chosen = supervised(batch)
    assert chosen.index.tolist() == [3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 22, 23, 24, 25]
    assert chosen.targets.tolist() == [int(batch.input_ids[(i + 1) // 11, (i + 1) % 11]) for i in chosen.index.tolist()]


def test_first_token_of_a_packed_document_is_no_target() -> None:
    ids = torch.arange(3, 12)[None]
    batch = Batch(ids, ids.clone(), torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]]), (0, 4, 5, 9), ("a:1", "a:2", "a:3"))
    chosen = supervised(batch)
    assert chosen.index.tolist() == [0, 1, 2, 5, 6, 7]
    assert chosen.targets.tolist() == [4, 5, 6, 9, 10, 11]


def test_targets_found_ahead_are_taken_until_labels_or_weights_are_others() -> None:
    batch = found_ahead(padded())
    known = batch.supervised
    assert supervised(batch) is known
    moved = batch.to("cpu")
    assert moved.supervised is not None
    assert supervised(moved) is moved.supervised
    labels = batch.labels.clone()
    labels[0] = IGNORE_INDEX
    other = dataclasses.replace(batch, labels=labels)
    assert supervised(other).index.tolist() == [i for i in supervised(batch).index.tolist() if i >= 11]
    assert supervised(other.to("cpu")).index.tolist() == supervised(other).index.tolist()
    weighted = dataclasses.replace(batch, weights=torch.full(batch.labels.shape, 0.5))
    assert supervised(weighted).weights is not None


class Asked(TorchDispatchMode):
    """Notes operators whose result a host has to wait for where they run on a GPU."""

    WAITS = frozenset({"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select"})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        self.names += [name] if name in self.WAITS else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_a_step_asks_for_no_value(kind: str) -> None:
    """On a GPU each would be a wait, which torch's own `set_sync_debug_mode` finds there (tests/test_gpu.py)."""
    model = make("llama")
    ids = torch.arange(3, 12)[None]
    positions = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]])
    batch = padded() if kind == "padded" else Batch(ids, ids.clone(), positions, (0, 4, 5, 9), ("a:1", "a:2", "a:3"))
    head_path(model)
    with Asked() as asked:
        supervised(batch)
    assert asked.names, "looking for targets would wait"
    batch = found_ahead(batch)
    with Asked() as asked:
        loss, _ = token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
    assert not asked.names


def test_no_target_at_all_gives_zero_and_zero_gradients() -> None:
    batch = padded()
    batch = dataclasses.replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX))
    model = make("llama")
    loss, total = token_loss(model, batch)
    assert loss.item() == 0
    assert total.item() == 0
    assert all(grad is not None and not grad.any() for grad in gradients(model, loss).values())
    assert score_rows(model, batch) == [(0.0, 0, 0)] * 3
    assert "no supervised token" in verify_head(model, batch)


ADAPTERS = {
    "lora": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    "lora-on-head": LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    "lora-and-head": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
    "tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 6]}),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_get_the_same_gradients(kind: str) -> None:
    model = get_peft_model(make("llama"), ADAPTERS[kind], autocast_adapter_dtype=False).double().train()
    assert head_path(model).name == ("selected" if kind == "lora-on-head" else "chunked")
    assert_same_as_full(model, padded())
    before = head_path(model)
    assert "equal" in verify_head(model, padded())
    assert head_path(model) == before


def test_lora_on_the_head_would_lose_its_gradient_and_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the look at the layer missed it, the comparison of the first batch does not."""
    from lightning_ft.engine import head

    model = get_peft_model(make("llama"), ADAPTERS["lora-on-head"], autocast_adapter_dtype=False).double().train()
    monkeypatch.setattr(head, "_obstacle", lambda _: "")
    assert head_path(model).name == "chunked"
    said = verify_head(model, padded())
    assert head_path(model).name == "selected"
    assert "chunked logits differ" in said
    assert_same_as_full(model, padded())


def test_disabled_modules_to_save_uses_the_original_head() -> None:
    model = get_peft_model(make("llama"), ADAPTERS["lora-and-head"], autocast_adapter_dtype=False).double()
    with torch.no_grad():
        base_model(model).lm_head.modules_to_save["default"].weight.mul_(2)
    with model.disable_adapter():
        torch.testing.assert_close(token_loss(model, padded())[0], full_nll(model, padded()).sum())


class Shifted(tf.LlamaForCausalLM):  # type: ignore[no-untyped-call]  # of transformers
    """A model that does something of its own to its logits."""

    def forward(self, input_ids: Any = None, use_cache: Any = None) -> Any:
        out = super().forward(input_ids=input_ids, use_cache=use_cache)
        out.logits = out.logits.sin()
        return out


class CappedByItself(tf.LlamaForCausalLM):  # type: ignore[no-untyped-call]  # of transformers
    """Caps its logits by a number of its own, so high that hidden states of their usual size do not show it."""

    def forward(self, input_ids: Any = None, use_cache: Any = None) -> Any:
        out = super().forward(input_ids=input_ids, use_cache=use_cache)
        out.logits = 30 * torch.tanh(out.logits / 30) if out.logits.abs().max() > 15 else out.logits
        return out


class Unpadded(tf.LlamaForCausalLM):  # type: ignore[no-untyped-call]  # of transformers
    """Leaves the last words of its vocabulary out, more of them than hidden states have numbers."""

    def forward(self, input_ids: Any = None, use_cache: Any = None, logits_to_keep: Any = 0) -> Any:
        out = super().forward(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)
        out.logits = out.logits[..., : VOCAB - 2]
        return out


class Scaled(tf.PhiForCausalLM):  # type: ignore[no-untyped-call]  # of transformers
    """Scales its logits, and its output layer has a bias, so that the scale does not commute with it."""

    def forward(self, input_ids: Any = None, use_cache: Any = None, logits_to_keep: Any = 0) -> Any:
        out = super().forward(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)
        out.logits = out.logits * 2
        return out


@pytest.mark.parametrize(
    ("cls", "family", "name"),
    [
        (Shifted, "llama", "full"), (Scaled, "phi-bias", "selected"), (CappedByItself, "llama", "full"),
        (Unpadded, "llama", "selected"),
    ],
)  # fmt: skip
def test_unknown_logits_go_the_plain_way(cls: type[tf.PreTrainedModel], family: str, name: str) -> None:
    torch.manual_seed(0)
    model = cls(FAMILIES[family]()).double()
    if family == "phi-bias":
        torch.nn.init.normal_(model.lm_head.bias)
    assert head_path(model).name == name
    assert_same_as_full(model, padded())
    assert f"path {name}" in verify_head(model, padded())


def test_verify_leaves_gradients_and_random_state_alone() -> None:
    model = make("llama")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    verify_head(model, padded())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(present(p.grad), torch.ones_like(p)) for p in model.parameters())


@pytest.mark.parametrize("way", ["chunked", "selected", "full"])
def test_logps_per_row_with_gradient(way: str) -> None:
    from lightning_ft.engine.head import demote

    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for family in ("llama-tied", "gemma2-capped", "phi-bias"):
        model, batch = make(family), padded()
        while head_path(model).name != way:
            demote(model, "the test asked")
        expected = -full_nll(model, batch).sum(1)
        wanted = gradients(model, (expected * factors).tanh().sum())
        logps = token_logps(model, batch)
        found = gradients(model, (logps * factors).tanh().sum())
        torch.testing.assert_close(logps, expected)
        torch.testing.assert_close(found, wanted)


def test_logps_with_a_frozen_head() -> None:
    model, batch = make("llama"), padded()
    model.lm_head.requires_grad_(False)
    wanted = gradients(model, -full_nll(model, batch).sum(1).square().sum())
    found = gradients(model, -token_logps(model, batch).square().sum())
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("way", ["chunked", "selected"])
@pytest.mark.parametrize("family", ["llama", "gemma2-capped", "granite-scaled"])
def test_scores_per_row(family: str, way: str) -> None:
    from lightning_ft.engine.head import demote

    model, batch = make(family), padded()
    if way == "selected":
        demote(model, "the test asked")
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        nll = full_nll(model, batch)
        # Make some predictions right, so that the count is not 0 for everybody.
        batch.labels[0, 5:9] = logits[0, 4:8].argmax(-1)
        nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="none").view(3, -1)
    valid = batch.labels[:, 1:] != IGNORE_INDEX
    right = ((logits[:, :-1].argmax(-1) == batch.labels[:, 1:]) & valid).sum(1)
    scores = score_rows(model, batch)
    assert [score[1:] for score in scores] == list(zip(valid.sum(1).tolist(), right.tolist(), strict=True))
    assert scores[0][2] >= 4
    torch.testing.assert_close([score[0] for score in scores], nll.sum(1).tolist())


def test_autocast_computes_in_bfloat16_and_returns_the_weights_type() -> None:
    torch.manual_seed(0)
    model = from_config("llama").train()
    batch = padded()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = full_nll(model, batch).sum()
        wanted = gradients(model, expected)
        loss, _ = token_loss(model, batch)
        assert loss.dtype == torch.float32
        assert "equal" in verify_head(model, batch)
        logps = token_logps(model, batch)
    found = gradients(model, loss)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-3, atol=0)
    for name, grad in wanted.items():
        given, plain = present(found[name]), present(grad)
        assert given.dtype == torch.float32
        assert (given - plain).norm() < 3e-2 * plain.norm() + 1e-4, name
    again, once = present(gradients(model, -logps.sum())["lm_head.weight"]), present(found["lm_head.weight"])
    assert (again - once).norm() < 1e-2 * once.norm()


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    model, batch = make("llama"), padded()
    wanted = gradients(model, token_loss(model, batch)[0])
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, token_loss(model, batch)[0]), wanted)


def test_nothing_stays_changed() -> None:
    model = make("gemma2-capped")
    keys = set(model.state_dict())
    token_loss(model, padded())
    assert "forward" not in vars(model.lm_head)
    assert model.config.final_logit_softcapping == 0.5
    assert set(model.state_dict()) == keys
    assert model.training
    model.model.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        token_loss(model, padded())
    assert "forward" not in vars(model.lm_head)
    assert model.config.final_logit_softcapping == 0.5
