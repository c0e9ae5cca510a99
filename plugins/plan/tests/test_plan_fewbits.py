"""What layers of few bits hold, by hand, and as bitsandbytes' own do."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_plan.fewbits import quantise
from lightning_ft_plan.hollow import ACTIVATIONS, WEIGHTS, Hollow
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_ft.backbone import BackboneSpec
from lightning_ft.quantization import Quantization
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.quantization import ComputeType, Format

MIB = 2**20


def plain(kind: type[nn.Module], inputs: int, outputs: int) -> Any:
    made: Any = kind
    layer = made(inputs, outputs) if kind is nn.Linear else made(outputs, inputs)  # Conv1D has them the other way round
    return layer.to(torch.bfloat16).requires_grad_(False)


def keeps_its_input(layer: nn.Module) -> bool:
    """Whether what goes in is still there while the graph of what came out is."""
    leaf, gone = torch.zeros(3, 64, dtype=torch.bfloat16, requires_grad=True), list[bool]()
    x = leaf * 1
    weakref.finalize(x.untyped_storage(), gone.append, True).atexit = False
    y = layer(x)
    del x
    assert y.requires_grad
    return not gone


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_inputs_are_not_kept_as_those_of_a_loaded_base_are_not(kind: Format, tmp_path: Path) -> None:
    pytest.importorskip("lightning_ft_quantize")
    spec = BackboneSpec(
        model=str(tiny_backbone_folder(tmp_path)), dtype=torch.bfloat16, quantization=Quantization(quantize=kind)
    )
    base = registry().manager.hook.load_backbone(spec=spec).model.train()
    layer = plain(nn.Linear, 64, 32)
    assert keeps_its_input(base.get_submodule("model.layers.0.mlp.down_proj")) is False
    quantise([layer], Quantization(quantize=kind), Hollow())
    assert keeps_its_input(layer) is False


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(
    ("stored", "bits", "compute"),
    [("nf4", 4.5, None), ("nf4", 4.5, "fp32"), ("fp4", 4.5, "bf16"), ("int8", 8.02, None)],
)
def test_a_weight_is_written_out_for_the_product(
    kind: type[nn.Module], stored: Format, bits: float, compute: ComputeType | None
) -> None:
    """4,096 rows of 1,024 bfloat16 in (8 MiB), of 2,048 out (16 MiB), by a weight of 2 Mi numbers (4 MiB)."""
    double = 2 if compute == "fp32" else 1
    with Hollow() as hollow:
        layer = plain(kind, 1024, 2048)
        quantise([layer], Quantization(quantize=stored, compute_dtype=compute), hollow)
        hollow.assign(layer.bias, WEIGHTS)
        leaf = torch.empty(4096, 1024, dtype=torch.bfloat16, requires_grad=True)
        x = leaf * 1
        with hollow.window("forward"):
            y = layer(x)
        # What comes in, written-out weight and result in the type of the product; where that is another one, x in it, too.
        given, made = 8 + 8, (4 + 16) * double + (16 if double == 2 else 0)
        assert hollow.peaks["forward"][WEIGHTS] == round(2 * MIB * bits / 8) + 2 * 2048
        assert hollow.peaks["forward"][ACTIVATIONS] == pytest.approx((given + made) * MIB, abs=8192)  # the bias is cast, too
        del x
        assert hollow.alive[ACTIVATIONS] == (8 + 16) * MIB
        y, grad = layer(leaf), torch.empty_like(y)
        with hollow.window("backward"):
            torch.autograd.grad(y, leaf, grad)
        # The weight and the gradients of result and input in that type; the former comes in another one.
        made = (4 + 8) * double + (32 if double == 2 else 0)
        assert hollow.peaks["backward"][ACTIVATIONS] == (8 + 16 + 16 + made) * MIB


def test_the_result_is_that_of_the_plain_layer() -> None:
    """Only memory is made up: with numbers it is the same product, and the same gradient."""
    x = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    for kind in (nn.Linear, Conv1D):
        layer = plain(kind, 64, 32)
        y = layer(x)
        (grad,) = torch.autograd.grad(y.float().square().sum(), x)
        quantise([layer], Quantization(quantize="nf4"), Hollow())
        torch.testing.assert_close(layer(x), y)
        torch.testing.assert_close(torch.autograd.grad(layer(x).float().square().sum(), x)[0], grad)
