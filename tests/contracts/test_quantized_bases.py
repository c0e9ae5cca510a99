"""Every registered adapter on a quantised base, as it is on a plain one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_ft.backbone import BackboneSpec
from lightning_ft.errors import NotMergeableError
from lightning_ft.quantization import Format, Quantization
from lightning_ft.registry import registry
from lightning_ft.testing.methods import METHOD_CLAUSES, inputs, plain_loss, train
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

pytest.importorskip("lightning_ft_quantize")

ADAPTERS = [name for name, entry in registry().methods.items() if not entry.cls.trains_base]
# Without our loader, bitsandbytes repacks 4-bit weights for evaluation on some CPUs, which is another function (and fails at
# widths below 64); int8 rounds by the largest input of a row, so that packed rows are not equal to 1e-5.
CLAUSES: dict[Format, tuple[str, ...]] = {
    "nf4": ("gradients", "frozen", "loss", "state", "reference", "packing", "checkpointing"),
    "int8": ("gradients", "frozen", "loss", "state", "reference", "checkpointing", "reload"),
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ADAPTERS), ("loha", {"dropout": 0.5}), ("lokr", {"dropout": 0.5, "factor": 4}),
]  # fmt: skip
FOUR_BITS = [Quantization(quantize="nf4"), Quantization(quantize="nf4", double_quant=True), Quantization(quantize="fp4")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    return {family: tiny_backbone_folder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def quantized(folders: dict[Family, Path], stored: Quantization, dtype: torch.dtype, family: Family) -> nn.Module:
    spec = BackboneSpec(model=str(folders[family]), dtype=dtype, quantization=stored)
    model: nn.Module = registry().manager.hook.load_backbone(spec=spec).model
    return model


def turned_back(folders: dict[Family, Path], stored: Quantization, family: Family) -> nn.Module:
    """A float32 model of the weights that the quantised one stands for."""
    from bitsandbytes.functional import dequantize_4bit

    model = tiny_model(family)
    for name, weight in quantized(folders, stored, torch.float32, family).named_parameters():
        if hasattr(weight, "quant_state"):
            model.get_parameter(name).data.copy_(dequantize_4bit(weight, weight.quant_state))
    return model


@pytest.mark.parametrize("quantize", CLAUSES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_on_a_quantised_base(name: str, family: Family, quantize: Format, folders: dict[Family, Path]) -> None:
    base = functools.partial(quantized, folders, Quantization(quantize=quantize), torch.float32)
    run = train(registry().methods[name].cls(), family, base)
    for clause in CLAUSES[quantize]:
        METHOD_CLAUSES[clause](run)
    with pytest.raises(NotMergeableError):
        run.method.merge(run.model)


@pytest.mark.parametrize("quantize", CLAUSES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_on_a_quantised_base_beside_bfloat16(name: str, quantize: Format, folders: dict[Family, Path]) -> None:
    """Without autocast, as a CPU trains: layers of some methods return float32, with which attention does not multiply."""
    base = functools.partial(quantized, folders, Quantization(quantize=quantize), torch.bfloat16)
    run = train(registry().methods[name].cls(), "llama", base)
    for clause in ("gradients", "frozen", "loss"):
        METHOD_CLAUSES[clause](run)


@pytest.mark.parametrize("stored", FOUR_BITS, ids=repr)
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_training_is_that_on_the_weights_turned_back(
    name: str, options: dict[str, Any], stored: Quantization, folders: dict[Family, Path]
) -> None:
    """Every loss on the way, and the gradients at its end, are those of plain float32 layers."""
    method = registry().methods[name].cls(**options)
    runs = [
        train(method, "llama", functools.partial(quantized, folders, stored, torch.float32)),
        train(method, "llama", functools.partial(turned_back, folders, stored)),
    ]
    torch.testing.assert_close(torch.tensor(runs[0].losses), torch.tensor(runs[1].losses))
    gradients: list[dict[str, Tensor | None]] = []
    for run in runs:
        method.load_trainable_state(run.model, method.trainable_state(runs[0].model))
        run.model.zero_grad()
        plain_loss(run.model, inputs()).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients.append({key: p.grad for key, p in run.model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)
