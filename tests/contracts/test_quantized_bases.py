"""Every registered adapter on a quantised base, as it is on a plain one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import torch

from lightning_ft.backbone import BackboneSpec
from lightning_ft.errors import NotMergeableError, UsageError
from lightning_ft.quantization import Format, Quantization
from lightning_ft.registry import registry
from lightning_ft.testing.methods import METHOD_CLAUSES, Trained, train
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
pytest.importorskip("lightning_ft_quantize")

ADAPTERS = [name for name, entry in registry().methods.items() if not entry.cls.trains_base]
# Without our loader, bitsandbytes repacks 4-bit weights for evaluation on some CPUs, which is another function (and fails at
# widths below 64); int8 rounds by the largest input of a row, so that packed rows are not equal to 1e-5.
CLAUSES: dict[Format, tuple[str, ...]] = {
    "nf4": ("gradients", "frozen", "loss", "state", "reference", "packing", "checkpointing"),
    "int8": ("gradients", "frozen", "loss", "state", "reference", "checkpointing", "reload"),
}
REFUSED = {("loha", "nf4"), ("lokr", "nf4")}
"""peft's versions read the shape of the packed weights."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    return {family: tiny_backbone_folder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def quantized(folders: dict[Family, Path], quantize: Format, dtype: torch.dtype, family: Family) -> nn.Module:
    spec = BackboneSpec(model=str(folders[family]), dtype=dtype, quantization=Quantization(quantize=quantize))
    model: nn.Module = registry().manager.hook.load_backbone(spec=spec).model
    return model


@pytest.mark.parametrize("quantize", CLAUSES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_on_a_quantised_base(name: str, family: Family, quantize: Format, folders: dict[Family, Path]) -> None:
    base = functools.partial(quantized, folders, quantize, torch.float32)
    method = registry().methods[name].cls()
    if (name, quantize) in REFUSED:
        with pytest.raises(UsageError, match="type --quantize int8"):
            train(method, "llama", base)
        return
    try:
        run = train(method, family, base)
    except UsageError:
        assert family == "gpt2"
        pytest.skip(f"{name} refuses {family}")
    for clause in CLAUSES[quantize]:
        METHOD_CLAUSES[clause](run)
    with pytest.raises(NotMergeableError):
        run.method.merge(run.model)


@pytest.mark.parametrize("quantize", CLAUSES)
@pytest.mark.parametrize("name", [name for name in ADAPTERS if (name, "int8") not in REFUSED])
def test_adapter_on_a_quantised_base_beside_bfloat16(name: str, quantize: Format, folders: dict[Family, Path]) -> None:
    """Without autocast, as a CPU trains: layers of some methods return float32, with which attention does not multiply."""
    if (name, quantize) in REFUSED:
        pytest.skip(f"{name} refuses {quantize}")
    run = train(registry().methods[name].cls(), "llama", functools.partial(quantized, folders, quantize, torch.bfloat16))
    assert isinstance(run, Trained)
    for clause in ("gradients", "frozen", "loss"):
        METHOD_CLAUSES[clause](run)
