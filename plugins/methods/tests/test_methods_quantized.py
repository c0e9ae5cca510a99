"""LoRA beside a base in few bits, which another plugin loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_methods.lora import LoRA

from lightning_ft.backbone import BackboneSpec
from lightning_ft.errors import UsageError
from lightning_ft.quantization import Quantization
from lightning_ft.registry import registry
from lightning_ft.testing.methods import logits
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("lightning_ft_quantize")


def load(folder: Path, **stored: Any) -> Any:
    spec = BackboneSpec(model=str(folder), dtype=torch.float32, quantization=Quantization(**stored))
    return registry().manager.hook.load_backbone(spec=spec).model


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_module_in_few_bits_cannot_train_whole(quantize: str, tmp_path: Path) -> None:
    model = load(tiny_backbone_folder(tmp_path), quantize=quantize)
    for name in ("down_proj", "mlp"):
        with pytest.raises(UsageError, match=f"modules whose weights can train, got {name}, which --quantize stores"):
            LoRA(modules_to_save=[name]).attach(model, 1)
    LoRA(modules_to_save=["lm_head"]).attach(model, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_dora_from_loftq_starts_at_what_loftq_gives(family: Family, tmp_path: Path) -> None:
    """m is the norm of the rows of Q + s B A, so that m (Q + s B A) / ||Q + s B A|| is that matrix."""
    folder = tiny_backbone_folder(tmp_path, family)
    plain = LoRA(init="loftq", rank=4).attach(load(folder, quantize="nf4"), 1)
    dora = LoRA(init="loftq", rank=4, use_dora=True).attach(load(folder, quantize="nf4"), 1)
    torch.testing.assert_close(logits(dora), logits(plain))


def test_an_adapter_of_other_four_bits_does_not_lie_beneath(tmp_path: Path) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    stored = Quantization(quantize="nf4", double_quant=True)
    first: Any = LoRA(rank=2).attach(load(folder, quantize="nf4", double_quant=True), 1)
    first.save_pretrained(str(tmp_path / "first"))
    stored.write(tmp_path / "first")
    method = LoRA(beneath=str(tmp_path / "first"))
    for other in ({"quantize": "fp4"}, {"quantize": "nf4"}, {"quantize": "fp4", "double_quant": True}):
        with pytest.raises(UsageError, match=r"one of nf4 --double_quant true: '.*'; type --quantize nf4 --double_quant true"):
            method.attach(load(folder, **other), 1)
    method.attach(load(folder, quantize="nf4", double_quant=True), 1)
