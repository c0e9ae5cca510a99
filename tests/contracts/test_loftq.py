"""LoftQ's start on a quantised base: what a method of one plugin makes of the weights of another."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_ft.backbone import BackboneSpec
from lightning_ft.errors import UsageError
from lightning_ft.quantization import Format, Quantization
from lightning_ft.registry import registry
from lightning_ft.testing.methods import logits
from lightning_ft.testing.models import Family, tiny_backbone_folder, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

pytest.importorskip("lightning_ft_quantize")


def base(folder: Path, quantize: Format = "nf4") -> Any:
    spec = BackboneSpec(model=str(folder), dtype=torch.float32, quantization=Quantization(quantize=quantize))
    return registry().manager.hook.load_backbone(spec=spec).model


def lora(**options: Any) -> Any:
    return registry().methods["lora"].cls(**options)


def kept(layer: Any) -> Tensor:
    from peft.utils.integrations import dequantize_bnb_weight

    found: Tensor = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).double()
    return found


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj"), ("gpt2", "transformer.h.1.mlp.c_proj"),
        ("gpt2", "transformer.h.1.attn.c_proj"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("alpha", [4, 32])
def test_a_and_b_are_the_best_approximation_of_what_quantisation_took(
    family: Family, name: str, alpha: int, tmp_path: Path
) -> None:
    """Eckart and Young: the error that is left has the singular values behind the first r. One layer is square."""
    adapted = lora(rank=8, alpha=alpha, init="loftq").attach(base(tiny_backbone_folder(tmp_path, family)), 1)
    layer = adapted.get_base_model().get_submodule(name)
    full = tiny_model(family).get_parameter(f"{name}.weight").detach().double()
    residual = (full if family == "llama" else full.t()) - kept(layer.get_base_layer())
    change = layer.scaling["default"] * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    left = torch.linalg.svdvals(residual)[8:].square().sum().sqrt()
    torch.testing.assert_close(torch.linalg.norm(residual - change), left, rtol=1e-4, atol=0)
    assert left < 0.8 * torch.linalg.norm(residual)


@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
def test_the_start_is_nearer_to_the_full_model_than_the_quantised_one(quantize: Format, tmp_path: Path) -> None:
    folder = tiny_backbone_folder(tmp_path)
    full = logits(tiny_model("llama"))
    plain = (logits(base(folder, quantize)) - full).square().mean()
    for rank in (16, 40):  # above the smaller side of every matrix, too
        model = lora(rank=rank, init="loftq").attach(base(folder, quantize), 1)
        assert (logits(model) - full).square().mean() < 0.7 * plain


def test_biases_do_not_train_on_few_bits(tmp_path: Path) -> None:
    """bitsandbytes casts a bias to what it computes in, for good."""
    with pytest.raises(UsageError, match=r"Expected --method\.bias none on a quantised base, .* got all"):
        lora(bias="all").attach(base(tiny_backbone_folder(tmp_path, "gpt2")), 1)


def test_the_reference_is_the_start(tmp_path: Path) -> None:
    method = lora(init="loftq")
    model = method.attach(base(tiny_backbone_folder(tmp_path)), 1)
    start = logits(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    with method.reference(model) as reference:
        assert torch.equal(logits(reference), start)
    assert not torch.allclose(logits(model), start)


def test_the_saved_adapter_is_taken_as_it_is(tmp_path: Path) -> None:
    from peft import PeftModel

    folder = tiny_backbone_folder(tmp_path / "base")
    model: nn.Module = lora(init="loftq").attach(base(folder), 1)
    model.save_pretrained(str(tmp_path / "adapter"))  # type: ignore[operator]  # PeftModel's
    assert torch.equal(logits(PeftModel.from_pretrained(base(folder), str(tmp_path / "adapter"))), logits(model))


@pytest.mark.parametrize(
    ("init", "quantized", "said"),
    [
        ("loftq", False, "Expected a quantised base for --method.init loftq, got none; add --quantize nf4"),
        ("pissa", True, "Expected a base that is not quantised for --method.init pissa, got one; type --method.init loftq"),
        ("olora", True, "Expected a base that is not quantised for --method.init olora, got one; type --method.init loftq"),
    ],
)
def test_a_start_that_does_not_go_with_the_base_is_refused(init: str, quantized: bool, said: str, tmp_path: Path) -> None:
    model = base(tiny_backbone_folder(tmp_path)) if quantized else tiny_model("llama")
    with pytest.raises(UsageError, match=said):
        lora(init=init).attach(model, 1)


def test_a_base_whose_files_are_gone_is_refused(tmp_path: Path) -> None:
    model = base(tiny_backbone_folder(tmp_path / "base"))
    shutil.move(tmp_path / "base", tmp_path / "away")
    with pytest.raises(UsageError, match=r"Expected 'model.safetensors' in .* for --method.init loftq, found none"):
        lora(init="loftq").attach(model, 1)
