from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from lightning_ft_methods import fused
from lightning_ft_methods.lora import LoRA
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear

from lightning_ft.testing import models
from lightning_ft.testing.methods import attach

if TYPE_CHECKING:
    from collections.abc import Callable

LAYER = "base_model.model.model.layers.0.mlp.up_proj"


def watched(way: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what goes into a way first."""
    seen: list[torch.Size] = []
    apply = way.apply

    def spy(first: torch.Tensor, *args: Any) -> Any:
        seen.append(first.shape)
        return apply(first, *args)

    monkeypatch.setattr(way, "apply", spy)
    return seen


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of inputs that went with the base layer through one function."""
    return watched(fused._Adapted, monkeypatch)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the base layer's outputs to which an adapter was added."""
    return watched(fused._Beside, monkeypatch)


def layer_of(method: LoRA, dtype: torch.dtype = torch.float64) -> Any:
    """A layer of a tiny Llama with an adapter whose B is not zero; A and B in float64 or float32."""
    model = method.attach(models.tiny_llama().to(dtype), 1)  # type: ignore[arg-type]  # transformers' to() is untyped
    layer = cast("Any", model.get_submodule(LAYER))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
    return layer.double() if dtype == torch.float64 else layer


def values(forward: Callable[[torch.Tensor], torch.Tensor], layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input, A and B."""
    trained = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    x = x.clone().requires_grad_()
    out = forward(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), (x, *trained))]


@pytest.mark.parametrize("shape", [(2, 5, 32), (7, 32)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_value_and_gradients_are_those_of_peft(taken: list[torch.Size], shape: tuple[int, ...], bias: bool) -> None:
    layer = layer_of(LoRA(rank=3, alpha=5.0))
    if bias:
        layer.base_layer.bias = torch.nn.Parameter(torch.randn(64, dtype=torch.float64), requires_grad=False)
    x = torch.randn(shape, dtype=torch.float64)
    found, expected = values(layer, layer, x), values(lambda x: PeftLinear.forward(layer, x), layer, x)
    torch.testing.assert_close(found, expected)
    assert taken == [torch.Size((x.numel() // 32, 32))]


def test_an_input_without_gradient_gets_none(taken: list[torch.Size]) -> None:
    """The first layer's input comes from a frozen embedding."""
    layer = layer_of(LoRA(rank=3))
    layer(torch.randn(4, 32, dtype=torch.float64)).sum().backward()
    assert taken
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 weights", "autocast"])
def test_a_bf16_base_has_a_float32_adapter_with_float32_gradients(taken: list[torch.Size], autocast: bool) -> None:
    """Both ways round to bfloat16, at other places: they agree as far as its 8 bits go."""
    layer = layer_of(LoRA(rank=3), torch.bfloat16)
    x = torch.randn(16, 32, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = values(layer, layer, x), values(lambda x: PeftLinear.forward(layer, x), layer, x)
    assert taken
    assert [v.dtype for v in found] == [torch.bfloat16, x.dtype, torch.float32, torch.float32]
    for f, e in zip(found, expected, strict=True):
        assert (f.double() - e.double()).norm() < 0.02 * e.double().norm()


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (LoRA(rank=3), lambda layer: layer.enable_adapters(enabled=False)),
        (LoRA(rank=3), lambda layer: layer.merge()),
        (LoRA(rank=3), lambda layer: layer.base_layer.register_forward_hook(lambda *_: None)),
        (LoRA(rank=3), lambda layer: layer.base_layer.weight.requires_grad_()),
        (LoRA(rank=3, dropout=0.5, use_dora=True), lambda layer: layer.train()),
        (LoRA(rank=3, use_dora=True), lambda layer: None),
    ],
    ids=["disabled", "merged", "observed", "base trains", "DoRA with dropout", "DoRA"],
)
def test_peft_computes_what_the_short_way_does_not(
    taken: list[torch.Size], beside: list[torch.Size], method: LoRA, change: Callable[[Any], Any]
) -> None:
    layer, x = layer_of(method), torch.randn(4, 32, dtype=torch.float64)
    change(layer)
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, PeftLinear.forward(layer, x))
    assert not taken
    assert not beside


@pytest.mark.parametrize("several", [False, True])
def test_dropout_and_several_adapters_are_those_of_peft(
    taken: list[torch.Size], beside: list[torch.Size], several: bool
) -> None:
    """Beside the base layer's own function; dropout draws the same numbers."""
    layer, x = layer_of(LoRA(rank=3, dropout=0.4)).train(), torch.randn(2, 5, 32, dtype=torch.float64)
    if several:
        layer.update_layer("other", 2, 6.0, config=LoraConfig(lora_dropout=0.1))
        layer.double().set_adapter(["default", "other"])
        layer.lora_B["other"].weight.data.normal_(generator=torch.Generator().manual_seed(1))

    def seeded(forward: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return values(forward, layer, x)

    torch.testing.assert_close(seeded(layer), seeded(lambda x: PeftLinear.forward(layer, x)))
    assert beside == [torch.Size((10, 64))] * (2 if several else 1)
    assert not taken


def test_every_layer_of_a_llama_takes_it_and_conv1d_stays_with_peft(taken: list[torch.Size]) -> None:
    attach(LoRA(rank=2), "llama")(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert len(taken) == 2 * 7
    attach(LoRA(rank=2), "gpt2")(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert len(taken) == 2 * 7
