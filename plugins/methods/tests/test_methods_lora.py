from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from lightning_ft_methods.lora import LoRA
from lightning_ft_methods.vectors import VeRA

from lightning_ft.errors import UsageError
from lightning_ft.testing.methods import attach, check_method, inputs, logits, plain_loss, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VARIANTS = [
    LoRA(use_rslora=True),
    LoRA(use_dora=True, rank=4),
    LoRA(init="gaussian", dropout=0.1),
    LoRA(init="orthogonal"),
    LoRA(init="pissa", rank=4),
    LoRA(init="olora", rank=4),
    LoRA(bias="all"),
    LoRA(bias="lora_only"),
    LoRA(plus_ratio=16.0),
    LoRA(modules_to_save=["lm_head"]),
    LoRA(modules_to_save=["wte"]),
]


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_variant_keeps_the_contract(method: LoRA) -> None:
    check_method(method)


def named(model: torch.nn.Module, part: str) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if part in name}


def test_forward_is_the_formula(tiny_llama: PreTrainedModel) -> None:
    """y = W x + (alpha / rank) B A x on one layer, in float64."""
    model = LoRA(rank=3, alpha=5.0, target_modules=["q_proj"]).attach(tiny_llama, 1).double()
    layer = cast("Any", model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj"))
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    with torch.no_grad():
        b.normal_()
        x = torch.randn(2, 7, 32, dtype=torch.float64)
        expected = x @ layer.base_layer.weight.T + 5.0 / 3.0 * x @ a.T @ b.T
        torch.testing.assert_close(layer(x), expected)


def test_scales() -> None:
    """None: alpha is 2 * rank, so the scale is 2; rsLoRA divides by the root: 2 * 16 / 4 = 8."""
    for method, scale in ((LoRA(rank=16), 2.0), (LoRA(rank=8), 2.0), (LoRA(rank=16, use_rslora=True), 8.0)):
        layer = cast("Any", attach(method, "llama").get_submodule("base_model.model.model.layers.0.mlp.up_proj"))
        assert layer.scaling["default"] == pytest.approx(scale)


def test_all_linear_is_every_layer_but_the_head() -> None:
    """Llama: 7 linear layers in each of 2 decoder layers; rank * (in + out) numbers in each."""
    model = attach(LoRA(rank=4), "llama")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 7 * 2
    assert not named(model, "lm_head.lora")
    # q, o: 32+32; k, v: 32+16; gate, up, down: 32+64
    assert sum(p.numel() for p in trainable.values()) == 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96)


def test_pissa_starts_with_the_leading_singular_vectors() -> None:
    """s B A is the best rank-r approximation of W: W - s B A has the singular values r+1 ... of W."""
    from lightning_ft.testing import models

    weight = models.tiny_llama().get_submodule("model.layers.0.self_attn.q_proj").weight
    model = attach(LoRA(init="pissa", rank=4), "llama")
    layer = cast("Any", model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj"))
    values = torch.linalg.svdvals(cast("torch.Tensor", weight).detach())
    expected = torch.cat([values[4:], torch.zeros(4)])
    torch.testing.assert_close(torch.linalg.svdvals(layer.base_layer.weight.detach()), expected, atol=1e-5, rtol=1e-4)


def test_plus_ratio_groups_b() -> None:
    model = attach(LoRA(plus_ratio=16.0), "gpt2")
    groups = LoRA(plus_ratio=16.0).param_groups(model, 1e-4)
    assert groups is not None
    slow, fast = groups
    assert (slow["lr"], fast["lr"]) == (1e-4, pytest.approx(1.6e-3))
    assert {id(p) for p in fast["params"]} == {id(p) for p in named(model, "lora_B").values()}
    assert {id(p) for p in slow["params"]} == {id(p) for p in named(model, "lora_A").values()}
    assert LoRA().param_groups(model, 1e-4) is None


def test_whole_modules_and_norms_are_stored_as_they_came() -> None:
    """Trained in float32 on a bfloat16 base, merged back to bfloat16."""
    from lightning_ft.testing import models

    base = models.tiny_gpt2().to(torch.bfloat16)  # type: ignore[arg-type]  # transformers' to() is untyped
    method = LoRA(bias="all", modules_to_save=["lm_head"])
    model = method.attach(base, 1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in method.merge(model).parameters()} == {torch.bfloat16}


def test_tied_head_stays_tied_when_trained_whole() -> None:
    run = train(LoRA(modules_to_save=["lm_head"]), "gpt2")
    tuned = logits(run.model)
    merged = cast("Any", run.method.merge(run.model))
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert (logits(merged) - tuned).abs().max() < 1e-5


@pytest.mark.parametrize("names", [["wte"], ["transformer.wte"], ["wte", "lm_head"]])
def test_a_tied_embedding_stays_tied_whatever_its_name(names: list[str]) -> None:
    run = train(LoRA(modules_to_save=names), "gpt2")
    tuned = logits(run.model)
    merged = cast("Any", run.method.merge(run.model))
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert (logits(merged) - tuned).abs().max() < 1e-5


def test_layers_that_peft_refuses_are_told(tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(UsageError, match=r"of linear layers: .*q_proj.*, got ones that it refuses: "):
        VeRA(target_modules=["embed_tokens"]).attach(tiny_llama, 1)


def test_options_survive_attach() -> None:
    """peft rewrites the lists that it is given; a frozen dataclass must not change."""
    method = LoRA(modules_to_save=["lm_head"], target_modules=["c_attn", "c_fc"])
    attach(method, "gpt2")
    assert method == LoRA(modules_to_save=["lm_head"], target_modules=["c_attn", "c_fc"])


def test_dropout_is_for_training_only() -> None:
    run = train(LoRA(dropout=0.5), "llama")
    assert torch.equal(logits(run.model), logits(run.model))
    run.model.train()
    torch.manual_seed(0)
    first = plain_loss(run.model, inputs()).item()
    assert not math.isclose(first, plain_loss(run.model, inputs()).item(), abs_tol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "Expected --method.rank to be a whole number of at least 1; got 0."),
        ({"alpha": 0.0}, "Expected --method.alpha to be above 0; got 0.0."),
        ({"dropout": 1.0}, "Expected --method.dropout to be at least 0 and below 1; got 1.0."),
        ({"bias": "some"}, "Expected --method.bias to be one of none, all, lora_only; got 'some'."),
        (
            {"init": "zero"},
            "Expected --method.init to be one of default, gaussian, orthogonal, pissa, olora, loftq; got 'zero'.",
        ),
        ({"init": "orthogonal", "rank": 3}, "Expected an even --method.rank for --method.init orthogonal; got 3."),
        ({"plus_ratio": -1.0}, "Expected --method.plus_ratio to be above 0; got -1.0."),
        ({"target_modules": []}, "Expected --method.target_modules to be all-linear or names as [q_proj,v_proj]; got none."),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LoRA(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize("names", ["q_proj", ["q_proj"]])
def test_a_name_that_stands_alone_is_a_list_of_one(names: str | list[str]) -> None:
    method = LoRA(target_modules=names, rank=2)
    model = attach(method, "llama")
    assert len(named(model, "q_proj.lora_A")) == len(named(model, "lora_A")) == 2
    assert method.target_modules == names
    with pytest.raises(UsageError, match=r"to name layers of this model .*; got \.\*"):
        attach(LoRA(target_modules=".*_proj"), "llama")


def test_wrong_layer_names(tiny_gpt2: PreTrainedModel) -> None:
    with pytest.raises(UsageError, match=r"layers of this model \(c_attn, c_fc, c_proj, lm_head\); got q_proj"):
        LoRA(target_modules=["q_proj"]).attach(tiny_gpt2, 1)


def test_olora_refuses_conv1d(tiny_gpt2: PreTrainedModel) -> None:
    with pytest.raises(UsageError, match="for Conv1D layers; got olora"):
        LoRA(init="olora").attach(tiny_gpt2, 1)
