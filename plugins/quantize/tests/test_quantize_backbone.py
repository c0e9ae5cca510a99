from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from lightning_ft_quantize.backbone import load_quantized

from lightning_ft.backbone import BackboneSpec, load_causal_lm
from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from lightning_ft.quantization import Quantization, count_parameters, settle
from lightning_ft.registry import registry
from lightning_ft.testing.methods import inputs, logits, plain_loss
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302, 0.2461123,
    0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
"""Dettmers et al. 2023, appendix E."""
METHOD: Any = SimpleNamespace(name="lora", trains_base=False)


def load(folder: Path, dtype: torch.dtype = torch.float32, **stored: Any) -> Any:
    return load_quantized(BackboneSpec(model=str(folder), dtype=dtype), Quantization(**stored)).model


def nearest(weight: Tensor, block: int = 64) -> Tensor:
    """Every weight as the level of its block that is nearest to it."""
    levels = torch.tensor(NF4, dtype=torch.float64)
    blocks = weight.double().reshape(-1, block)
    scale = blocks.abs().amax(1, keepdim=True)
    chosen = (blocks / scale)[..., None].sub(levels).abs().argmin(-1)
    return (levels[chosen] * scale).reshape(weight.shape)


def test_nf4_is_the_nearest_level_of_each_block_of_64(tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    model = load(tiny_backbone_folder(tmp_path), quantize="nf4")
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(name)
    found = dequantize_4bit(layer.weight, layer.weight.quant_state)
    torch.testing.assert_close(found.double(), nearest(tiny_model("llama").get_parameter(f"{name}.weight")), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("stored", "bits", "near"),
    [
        ({"quantize": "nf4"}, 4.5, 0.35),
        ({"quantize": "nf4", "double_quant": True}, 4.5, 0.35),
        ({"quantize": "fp4"}, 4.5, 0.6),
        ({"quantize": "int8"}, 8.5, 0.05),
    ],
)
def test_a_quantised_model_is_small_and_near_to_the_full_one(
    family: Family, stored: dict[str, Any], bits: float, near: float, tmp_path: Path
) -> None:
    model = load(tiny_backbone_folder(tmp_path, family), **stored)
    full = tiny_model(family)
    inner = [n for n, p in full.named_parameters() if p.ndim == 2 and ("layers." in n or ".h." in n)]
    assert inner
    kept = dict(model.named_parameters())
    assert all(kept[name].numel() * kept[name].element_size() * 8 <= bits * full.get_parameter(name).numel() for name in inner)
    assert not any(p.requires_grad for name, p in kept.items() if name in inner)
    assert (
        count_parameters(model.parameters()) == count_parameters(full.parameters()) == sum(p.numel() for p in full.parameters())
    )
    gap = (logits(model) - logits(full)).abs().mean() / logits(full).std()
    assert 1e-4 < gap < near


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the kernel does not tell what is mapped")
@pytest.mark.parametrize("stored", ["nf4", "int8"])
def test_the_file_of_the_weights_is_let_go(stored: str, tmp_path: Path) -> None:
    """With it the pages of the weights as they were before."""
    folder = tiny_backbone_folder(tmp_path)
    full = load_causal_lm(BackboneSpec(model=str(folder), dtype=torch.float32)).model
    assert str(folder) in Path("/proc/self/maps").read_text(), "a plain model is read from the file as it goes"
    model = load(folder, quantize=stored)
    torch.testing.assert_close(model.get_input_embeddings().weight, full.get_input_embeddings().weight, atol=0, rtol=0)
    assert model.config.tie_word_embeddings == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    del full
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_layers_compute_in_the_named_type(tmp_path: Path) -> None:
    folder = tiny_backbone_folder(tmp_path)
    default = load(folder, torch.bfloat16, quantize="nf4").get_submodule("model.layers.0.mlp.up_proj")
    named = load(folder, torch.bfloat16, quantize="nf4", compute_dtype="fp32").get_submodule("model.layers.0.mlp.up_proj")
    assert (default.compute_dtype, named.compute_dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
def test_gradients_are_the_same_after_an_evaluation_as_before(quantize: str, tmp_path: Path) -> None:
    """bitsandbytes repacks 4-bit weights at the first evaluation, and its product of those passes no gradient on."""
    model = load(tiny_backbone_folder(tmp_path), torch.bfloat16, quantize=quantize)
    embedding = model.get_submodule("model.embed_tokens").weight
    embedding.requires_grad_(True)
    packs = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert len(packs) == (0 if quantize == "int8" else 14)
    assert not any(module.support_avx512bf16_for_cpu for module in packs), "whatever this machine can do"
    gradients: list[Tensor] = []
    for _ in range(2):
        embedding.grad = None
        model.train()
        plain_loss(model, inputs()).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients.append(embedding.grad)
        model.eval()
        with torch.no_grad():
            model(input_ids=inputs())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_gradients_of_the_input_go_through_the_quantised_weights(quantize: str, tmp_path: Path) -> None:
    from peft.utils.integrations import dequantize_bnb_weight

    model = load(tiny_backbone_folder(tmp_path), quantize=quantize).train()
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    weight = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).float()
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    upstream = torch.randn(6, weight.shape[0], generator=torch.Generator().manual_seed(1))
    y = layer(x)
    y.backward(upstream)
    tolerance = {"nf4": 1e-5, "int8": 0.1}[quantize]  # int8 rounds the input as well
    torch.testing.assert_close(y, x @ weight.t(), atol=tolerance, rtol=0)
    torch.testing.assert_close(x.grad, upstream @ weight, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_no_input_is_kept_for_the_gradient_of_frozen_weights(quantize: str, training: bool, tmp_path: Path) -> None:
    """bitsandbytes keeps those of 8-bit layers past the backward pass, and recomputing activations does not free them."""
    model = load(tiny_backbone_folder(tmp_path), torch.bfloat16, quantize=quantize).train(training)
    layer, gone = model.get_submodule("model.layers.0.mlp.up_proj"), list[bool]()
    leaf = torch.randn(2, 3, 32, dtype=torch.bfloat16, requires_grad=True)
    x = leaf * 1
    weakref.finalize(x.untyped_storage(), gone.append, True).atexit = False
    y = layer(x)
    del x
    assert gone == [True]
    (found,) = torch.autograd.grad(y.float().sum(), leaf)
    theirs: Any = {"nf4": Linear4bit, "int8": Linear8bitLt}[quantize]
    (expected,) = torch.autograd.grad(theirs.forward(layer, leaf).float().sum(), leaf)
    assert torch.equal(found, expected)
    empty = leaf[:0]
    torch.autograd.grad(layer(empty).sum(), empty)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "nf5"}, "one of nf4, fp4, int8; got 'nf5'"),
        ({"quantize": "int8", "double_quant": True}, "Expected --double_quant with --quantize nf4 or fp4, got int8"),
        ({"quantize": "int8", "compute_dtype": "bf16"}, "Expected --compute_dtype with --quantize nf4 or fp4, got int8"),
    ],
)
def test_what_does_not_exist_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Quantization(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_an_adapter_from_a_gpu_computes_in_fp32_on_a_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its note says fp16, and the user cannot say otherwise."""
    model = load(tiny_backbone_folder(tmp_path), quantize="nf4", compute_dtype="fp16")
    assert model.get_submodule("model.layers.0.mlp.up_proj").compute_dtype == torch.float32
    assert [record.message for record in caplog.records if "computing in fp32" in record.message]
    assert bool(logits(model).isfinite().all())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies it")
def test_fp16_is_refused_on_a_cpu() -> None:
    config = TrainingConfig(model="m", data=["d"], quantize="nf4", compute_dtype="fp16")
    with pytest.raises(UsageError, match="Expected --compute_dtype bf16 or fp32 on a CPU"):
        settle(config, None, METHOD, goes_on=False)
    before = Quantization(quantize="nf4", compute_dtype="fp16")
    assert settle(config, before, METHOD, goes_on=True) == before


def test_the_same_options_go_on() -> None:
    """The note names the type of products also where the run left it to the weights'."""
    before = Quantization(quantize="nf4", double_quant=True, compute_dtype="bf16")
    for options in ({"double_quant": True}, {}, {"double_quant": True, "compute_dtype": "bf16"}):
        config = TrainingConfig.from_dict({"model": "m", "data": ["d"], "quantize": "nf4", **options})
        assert settle(config, before, METHOD, goes_on=True) == before
        assert (config.double_quant, config.compute_dtype) == (True, "bf16")
    for other in ({"double_quant": True, "compute_dtype": "fp32"}, {"quantize": "fp4"}, {"quantize": "int8"}):
        config = TrainingConfig.from_dict({"model": "m", "data": ["d"], "quantize": "nf4", **other})
        with pytest.raises(UsageError, match="got other options"):
            settle(config, before, METHOD, goes_on=True)


def test_without_bitsandbytes_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="Expected bitsandbytes for --quantize nf4, found none that loads"):
        load(tiny_backbone_folder(tmp_path), quantize="nf4")


def test_the_hook_leaves_plain_models_to_others(tmp_path: Path) -> None:
    backbone = registry().manager.hook.load_backbone(spec=BackboneSpec(model=str(tiny_backbone_folder(tmp_path))))
    assert not getattr(backbone.model, "is_quantized", False)


@pytest.mark.parametrize(("double_quant", "bits"), [(False, 4.5), (True, 4.127)])
def test_bits_of_a_weight_with_its_scales(double_quant: bool, bits: float, tmp_path: Path) -> None:
    """32 bits for a block of 64, or 8 bits for it and 32 for each 256 of these (Dettmers et al. 2023, section 3)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "vocab_size": 260}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weight = load(tmp_path, quantize="nf4", double_quant=double_quant).get_submodule("model.layers.0.mlp.up_proj").weight
    state = weight.quant_state
    kept = [weight, state.absmax, *([state.state2.absmax] if double_quant else [])]
    assert 8 * sum(tensor.numel() * tensor.element_size() for tensor in kept) == pytest.approx(bits * 256 * 512, rel=1e-3)
