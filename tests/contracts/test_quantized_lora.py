"""LoRA's short way on a quantised base: peft's function, and no second copy of what goes into a layer."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lightning_ft.backbone import BackboneSpec
from lightning_ft.loading import BENEATH
from lightning_ft.quantization import Quantization, loads_by_peft_alone
from lightning_ft.registry import registry
from lightning_ft.testing.methods import inputs
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

pytest.importorskip("lightning_ft_quantize")
fused: Any = pytest.importorskip("lightning_ft_methods.fused")

STORED = [
    Quantization(quantize="nf4"), Quantization(quantize="nf4", double_quant=True), Quantization(quantize="fp4"),
    Quantization(quantize="int8"),
]  # fmt: skip
LAYERS: dict[Family, str] = {"llama": "model.layers.0.mlp.up_proj", "gpt2": "transformer.h.0.attn.c_attn"}
"""Without and with a bias, and with one shape for Conv1D and for linear layers."""
KINDS = {"nf4": "Linear4bit", "fp4": "Linear4bit", "int8": "Linear8bitLt"}
NF4 = STORED[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    return {family: tiny_backbone_folder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of outputs to which the short way added."""
    seen: list[torch.Size] = []
    apply = fused._Beside.apply

    def spy(y: Tensor, *args: Any) -> Any:
        seen.append(y.shape)
        return apply(y, *args)

    monkeypatch.setattr(fused._Beside, "apply", spy)
    return seen


def adapted(folder: Path, stored: Quantization, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A tiny quantised model in training, with an adapter whose B is not zero."""
    base = registry().manager.hook.load_backbone(spec=BackboneSpec(model=str(folder), dtype=dtype, quantization=stored)).model
    model = registry().methods["lora"].cls(**{"rank": 3, "alpha": 5.0, **options}).attach(base, 1).train()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            parameter.data.normal_(generator=draw)
    return model


def layer_of(model: Any, family: Family = "llama") -> Any:
    return model.get_base_model().get_submodule(LAYERS[family])


def values(forward: Callable[[Tensor], Tensor], layer: Any, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of all that trains."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = forward(x)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), (x, *trained))]


def of_peft(layer: Any) -> Callable[..., Tensor]:
    """The forward of peft's own class."""
    forward: Any = type(layer).__mro__[1].__dict__["forward"]
    assert forward.__module__.startswith("peft.")
    return functools.partial(forward, layer)


def rows(layer: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 7, layer.in_features, generator=torch.Generator().manual_seed(3)).to(dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("options", [{}, {"dropout": 0.4}, {"use_rslora": True, "rank": 4, "alpha": 3.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", STORED, ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradients_are_those_of_peft(
    family: Family, stored: Quantization, dtype: torch.dtype, options: dict[str, Any], folders: dict[Family, Path],
    taken: list[torch.Size],
) -> None:  # fmt: skip
    """Dropout included, which draws the same numbers; in bfloat16 as far as its 8 bits go."""
    layer = layer_of(adapted(folders[family], stored, dtype, **options), family)
    assert KINDS[stored.quantize] in {cls.__name__ for cls in type(layer.base_layer).__mro__}
    x = rows(layer, dtype)
    found, expected = values(layer, layer, x), values(of_peft(layer), layer, x)
    assert taken == [torch.Size((14, layer.out_features))]
    assert [v.dtype for v in found[2:]] == [torch.float32] * 2
    assert max(map(relative, found, expected)) < (1e-5 if dtype == torch.float32 else 0.01)
    layer.eval()
    found, expected = values(layer, layer, x), values(of_peft(layer), layer, x)
    assert max(map(relative, found, expected)) < (1e-5 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("autocast", [False, True])
def test_products_of_the_base_in_another_type_stay_its_own_affair(
    autocast: bool, folders: dict[Family, Path], taken: list[torch.Size]
) -> None:
    layer = layer_of(adapted(folders["llama"], Quantization(quantize="nf4", compute_dtype="fp32"), torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x = rows(layer, torch.bfloat16)
        found, expected = values(layer, layer, x), values(of_peft(layer), layer, x)
    assert len(taken) == 1
    assert max(map(relative, found, expected)) < 0.01


@pytest.mark.parametrize("frozen", [False, True])
def test_several_adapters_are_added_one_after_the_other(
    frozen: bool, folders: dict[Family, Path], taken: list[torch.Size]
) -> None:
    model = adapted(folders["llama"], NF4, dropout=0.4)
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    layer = layer_of(model)
    layer.lora_B["other"].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    layer.lora_A["default"].weight.requires_grad_(not frozen)
    layer.lora_B["default"].weight.requires_grad_(not frozen)
    x = rows(layer)
    found, expected = values(layer, layer, x), values(of_peft(layer), layer, x)
    assert len(taken) == 2
    assert len(found) == (4 if frozen else 6)
    assert max(map(relative, found, expected)) < 1e-5


def test_an_adapter_beneath_takes_part_and_keeps_nothing(folders: dict[Family, Path], tmp_path: Path) -> None:
    first = adapted(folders["llama"], NF4)
    first.peft_config["default"].base_model_name_or_path = str(folders["llama"])
    first.save_pretrained(str(tmp_path))
    NF4.computing_in(torch.float32).write(tmp_path)
    layer = layer_of(adapted(folders["llama"], NF4, beneath=str(tmp_path)))
    torch.testing.assert_close(layer.lora_B[BENEATH].weight, layer_of(first).lora_B["default"].weight, atol=0, rtol=0)
    x = rows(layer)
    found, expected = values(layer, layer, x), values(of_peft(layer), layer, x)
    assert max(map(relative, found, expected)) < 1e-5
    # Of the lower one its matrices, for the gradient of x; of the upper one x and A x, too.
    shapes = sorted(tuple(t.shape) for t in saved(layer, x))
    a, b = (3, layer.in_features), (layer.out_features, 3)
    assert shapes == sorted([a, b, a, b, (14, layer.in_features), (14, 3)])
    layer.lora_A["default"].weight.requires_grad_(False)
    layer.lora_B["default"].weight.requires_grad_(False)
    assert sorted(tuple(t.shape) for t in saved(layer, x)) == sorted([a, b, a, b])


def saved(forward: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """What autograd's own account keeps for the backward pass, tensors that share their memory once."""
    found: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        found.setdefault(t.untyped_storage().data_ptr(), t)  # held until the end, so that no address comes twice
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        out = forward(x.clone().requires_grad_() * 1)
    assert out.requires_grad
    return list(found.values())


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_what_goes_in_is_kept_once_and_as_it_came(quantize: Any, dropout: float, folders: dict[Family, Path]) -> None:
    """14 rows of bfloat16 with A x, A and B in it; where dropout draws, a byte for each number in."""
    layer = layer_of(adapted(folders["llama"], Quantization(quantize=quantize), torch.bfloat16, dropout=dropout))
    x = rows(layer, torch.bfloat16)
    kept = saved(layer, x)
    width, out = layer.in_features, layer.out_features
    thin = 2 * 3 * (14 + width + out)
    assert bytes_of(kept) == 2 * 14 * width + thin + (14 * width if dropout else 0)
    assert not any(t.dtype == torch.float32 for t in kept)
    theirs = saved(of_peft(layer), x)
    assert bytes_of(theirs) - 2 * thin >= (8 if dropout else 4) * 14 * width, "a copy in float32, or what dropout left and drew"


def test_a_step_of_the_model_keeps_less(folders: dict[Family, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of four bytes a number for each of seven layers, against two for what goes into q, k and v, into gate and up,
    and into down; attention keeps what goes into o in any case."""
    model = adapted(folders["llama"], NF4, torch.bfloat16)
    embedded = model.get_input_embeddings()(inputs()).detach()

    def forward(x: Tensor) -> Tensor:
        out: Tensor = model(inputs_embeds=x, use_cache=False).logits
        return out

    mine = saved(forward, embedded)
    monkeypatch.setattr(fused, "_adapters", lambda layer: None)
    theirs = saved(forward, embedded)
    widths = {name.rpartition(".")[2]: m.in_features for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert len(widths) == 7
    less = 4 * sum(widths.values()) - 2 * (widths["q_proj"] + widths["gate_proj"] + widths["down_proj"])
    assert bytes_of(theirs) - bytes_of(mine) > 2 * inputs().numel() * less


def test_every_layer_takes_it_and_is_still_one_of_peft(folders: dict[Family, Path], taken: list[torch.Size]) -> None:
    for family, number in (("llama", 2 * 7), ("gpt2", 2 * 4)):
        taken.clear()
        model = adapted(folders[family], NF4)  # type: ignore[index]  # a family
        model(input_ids=inputs(), use_cache=False)
        assert len(taken) == number
        assert loads_by_peft_alone(model)


def test_an_input_without_gradient_gets_none(folders: dict[Family, Path], taken: list[torch.Size]) -> None:
    """The first layer's comes from a frozen embedding."""
    layer = layer_of(adapted(folders["llama"], NF4))
    layer(rows(layer)).sum().backward()
    assert taken
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0


def test_recomputed_activations_drop_what_was_dropped(folders: dict[Family, Path]) -> None:
    layer = layer_of(adapted(folders["llama"], NF4, torch.bfloat16, dropout=0.4))
    x = rows(layer, torch.bfloat16)
    again = functools.partial(checkpoint, layer, use_reentrant=False)
    assert all(map(torch.equal, values(layer, layer, x), values(again, layer, x)))


def observe(layer: Any) -> None:
    layer.base_layer.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({}, lambda layer: layer.enable_adapters(enabled=False)),
        ({}, lambda layer: layer.merge()),
        ({}, observe),
        ({}, lambda layer: layer.base_layer.bias.requires_grad_(True)),
        ({"use_dora": True}, lambda layer: None),
        ({"use_dora": True, "dropout": 0.4}, lambda layer: None),
    ],
    ids=["disabled", "merged", "observed", "base trains", "DoRA", "DoRA with dropout"],
)
@pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit")
def test_peft_computes_what_the_short_way_does_not(
    options: dict[str, Any], change: Callable[[Any], Any], folders: dict[Family, Path], taken: list[torch.Size]
) -> None:
    layer = layer_of(adapted(folders["gpt2"], NF4, **options), "gpt2")
    change(layer)
    x = rows(layer)
    torch.manual_seed(1)
    found = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, of_peft(layer)(x), atol=0, rtol=0)
    assert not taken


def test_several_adapters_in_one_batch_are_pefts(folders: dict[Family, Path], taken: list[torch.Size]) -> None:
    layer = layer_of(adapted(folders["llama"], NF4)).eval()
    x, names = rows(layer), ["default", "__base__"]
    torch.testing.assert_close(layer(x, adapter_names=names), of_peft(layer)(x, adapter_names=names), atol=0, rtol=0)
    assert not taken
