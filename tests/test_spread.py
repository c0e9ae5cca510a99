"""What of a model is spread over processes, and what lies whole in each; in one process, which is a mesh of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import AutoModelForCausalLM

from lightning_ft import optim
from lightning_ft.backbone import BackboneSpec, load_causal_lm
from lightning_ft.engine.sharding import DATA, TENSOR, Shards, whole
from lightning_ft.quantization import Quantization
from lightning_ft.registry import registry
from lightning_ft.run.hardware import formats
from lightning_ft.run.narrow import load_narrow, reads_narrow, stored_format
from lightning_ft.testing.models import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARDED = formats("bf16", trains_base=True).sharded


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=(DATA, TENSOR))
    torch.distributed.destroy_process_group()


@pytest.fixture
def narrow(tmp_path: Path) -> BackboneSpec:
    """A model whose file is of bfloat16."""
    folder = tiny_backbone_folder(tmp_path / "narrow")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return BackboneSpec(model=str(folder), dtype=torch.float32)


@pytest.mark.parametrize("name", sorted(optim.KNOWN))
def test_every_optimiser_that_may_updates_parts(name: str, mesh: DeviceMesh) -> None:
    optimizer = getattr(torch.optim, name)
    found = []
    for in_parts in (True, False):
        start = torch.arange(16.0).reshape(4, 4)
        p = torch.nn.Parameter(distribute_tensor(start, mesh[DATA], [Shard(0)]) if in_parts else start)
        made = optimizer([p], lr=0.1, **optim.fused(optimizer, in_parts=in_parts))
        for _ in range(3):
            p.grad = (p.detach() - 3) / 7
            made.step()
        found.append(whole(p.detach()))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found[0], torch.arange(16.0).reshape(4, 4))


@pytest.mark.parametrize(("quantize", "spread"), [("nf4", True), ("fp4", True), ("int8", False)])
def test_what_of_a_quantised_base_is_spread(quantize: Any, spread: bool, tmp_path: Path, mesh: DeviceMesh) -> None:
    spec = BackboneSpec(
        model=str(tiny_backbone_folder(tmp_path / "model")), dtype=torch.float32, quantization=Quantization(quantize=quantize)
    )
    model = registry().manager.hook.load_backbone(spec=spec).model
    packed = [name for name, p in model.named_parameters() if p.dtype in (torch.uint8, torch.int8)]
    assert packed
    Shards(model, mesh, spread=True, compute=None)
    kept = dict(model.named_parameters())
    assert all(isinstance(kept[name], DTensor) is spread for name in packed)
    assert all(isinstance(p, DTensor) for name, p in kept.items() if name not in packed)


def test_weights_of_16_bits_are_read_as_they_are_and_widened_once_they_are_spread(
    narrow: BackboneSpec, mesh: DeviceMesh
) -> None:
    assert stored_format(Path(narrow.model)) == "BF16"
    assert reads_narrow(SHARDED, narrow)
    wide = load_causal_lm(narrow).model
    found = load_narrow(load_causal_lm, narrow)
    assert found is not None
    model = found.model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    Shards(model, mesh, spread=True, compute=torch.bfloat16, held=torch.float32)
    mine, theirs = dict(model.named_parameters()), dict(wide.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, p in mine.items():
        assert isinstance(p, DTensor)
        assert p.dtype == torch.float32
        torch.testing.assert_close(p.full_tensor(), theirs[name], rtol=0, atol=0)
    for (name, one), (_, other) in zip(model.named_buffers(), wide.named_buffers(), strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


def test_weights_are_read_in_full_width_where_narrow_ones_would_be_others(narrow: BackboneSpec) -> None:
    plain = formats("fp32", trains_base=True).sharded
    assert not reads_narrow(plain, narrow), "computed in float32"
    assert not reads_narrow(formats("bf16", trains_base=True), narrow), "not spread"
    assert not reads_narrow(formats("bf16", trains_base=True, master="none").sharded, narrow), "not kept in float32"
    assert not reads_narrow(SHARDED, replace(narrow, from_scratch=True))
    assert not reads_narrow(SHARDED, replace(narrow, model="owner/name"))
    file = Path(narrow.model) / "model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].float()}, file, {"format": "pt"})
    assert stored_format(Path(narrow.model)) is None
    assert not reads_narrow(SHARDED, narrow), "one of them is of float32"


def test_a_buffer_that_would_be_rounded_is_not(narrow: BackboneSpec) -> None:
    def load(spec: BackboneSpec) -> Any:
        found = load_causal_lm(spec)
        found.model.register_buffer("scale", torch.tensor(25.298221, dtype=spec.dtype))
        return found

    assert load_narrow(load, narrow) is None
