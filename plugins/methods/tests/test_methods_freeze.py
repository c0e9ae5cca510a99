from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from lightning_ft_methods.freeze import Freeze, layers_for

from lightning_ft.errors import UsageError
from lightning_ft.testing import check_method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_keeps_the_contract(ratio: float) -> None:
    check_method(Freeze(ratio))


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_lower_half_and_embeddings_are_frozen(tiny_llama: PreTrainedModel) -> None:
    everything = {name for name, _ in tiny_llama.named_parameters()}
    model = Freeze(0.5).attach(tiny_llama, 1)
    frozen = {n for n in everything if n.startswith(("model.layers.0.", "model.embed_tokens."))}
    assert trainable(model) == everything - frozen
    assert {"lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"} <= trainable(model)


def test_tied_head_is_frozen_with_the_embedding(tiny_gpt2: PreTrainedModel) -> None:
    model = Freeze(1.0).attach(tiny_gpt2, 1)
    assert trainable(model) == {"transformer.ln_f.weight", "transformer.ln_f.bias"}


@pytest.mark.parametrize(("ratio", "frozen"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.99, 1), (1.0, 2)])
def test_ratio_is_rounded_down_to_layers(tiny_llama: PreTrainedModel, ratio: float, frozen: int) -> None:
    layers = layers_for(Freeze(ratio).attach(tiny_llama, 1), "freeze")
    assert [next(layer.parameters()).requires_grad for layer in layers] == [i >= frozen for i in range(2)]
    assert tiny_llama.get_input_embeddings().weight.requires_grad == (ratio == 0)


def test_a_third_of_three_layers_is_one() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=3, num_attention_heads=1, num_key_value_heads=1
    )
    layers = layers_for(Freeze(1 - 2 / 3).attach(LlamaForCausalLM(config), 1), "freeze")
    assert [next(layer.parameters()).requires_grad for layer in layers] == [False, True, True]


def test_backward_ends_at_the_lowest_trained_layer(tiny_llama: PreTrainedModel) -> None:
    model = Freeze(0.5).attach(tiny_llama, 1)
    seen: list[bool] = []
    layers_for(model, "freeze")[0].register_forward_hook(lambda _m, _i, out: seen.append(torch.as_tensor(out).requires_grad))
    model(input_ids=torch.arange(5)[None] + 40, use_cache=False)
    assert seen == [False]


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_wrong_ratio(ratio: float) -> None:
    with pytest.raises(UsageError, match=rf"Expected --method.freeze_ratio to be from 0 to 1; got {ratio}."):
        Freeze(ratio)


def test_model_without_layers() -> None:
    with pytest.raises(UsageError, match="Expected a model with a list of decoder layers for --method freeze; got Linear"):
        Freeze().attach(torch.nn.Linear(2, 2), 1)
