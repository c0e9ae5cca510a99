from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lightning_ft.engine import kernels
from lightning_ft.engine.norm import fuse_norms, rms_norm
from lightning_ft.testing.models import tiny_gpt2, tiny_llama

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip


def written_out(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("shape", [(7,), (3, 16), (2, 3, 5)])
def test_value_and_gradients_are_the_formulas(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_norm(x, weight, 1e-2), written_out(x, weight, 1e-2))
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-2), (x, weight))
    frozen = weight.detach()
    assert torch.autograd.gradcheck(lambda a: rms_norm(a, frozen, 1e-2), (x,))


def logits_and_gradients(model: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits: Tensor = model(input_ids=ids).logits
    logits.float().logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]  # of torch
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_computes_the_same(family: str, kind: str) -> None:
    """Values bit for bit, for so the norm is computed, but where a kernel of ours sums in another order; gradients but for
    rounding."""
    torch.manual_seed(0)
    plain: Any = tiny_llama() if family == "llama" else Qwen3ForCausalLM(Qwen3Config(**SMALL))
    plain = plain.to(torch.bfloat16) if kind == "bf16" else plain.float()
    short = copy.deepcopy(plain)
    names = [name for name, _ in plain.named_parameters() if "norm" in name]
    assert fuse_norms(short) == len(names) > 0
    ids = torch.randint(60, (2, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        theirs, ours = logits_and_gradients(plain, ids), logits_and_gradients(short, ids)
    if kind == "bf16" and kernels.on_cpu(torch.ones(1).bfloat16()) is not None:
        torch.testing.assert_close(ours[0], theirs[0], rtol=2e-2, atol=2e-2)
    else:
        assert torch.equal(theirs[0], ours[0])
    assert theirs[1].keys() == ours[1].keys()
    for name, expected in theirs[1].items():
        difference = (ours[1][name].double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
        assert difference < (1e-5 if kind == "fp32" else 3e-2), name


def test_the_module_stays_what_it_was() -> None:
    model = tiny_llama()
    before = {name: type(module) for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    fuse_norms(model)
    short = [type(module) for module in model.modules()]
    assert fuse_norms(model) > 0
    assert [type(module) for module in model.modules()] == short, "a second time changes nothing"
    for name, module in model.named_modules():
        assert isinstance(module, before[name])
        assert type(module).__name__ == before[name].__name__
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(model: nn.Module) -> int:
        found: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.randn(1, 64, 16, dtype=torch.bfloat16, requires_grad=True))
        return sum(found.values())

    plain: nn.Module = type(tiny_llama().model.norm)(16).to(torch.bfloat16)
    short = copy.deepcopy(plain)
    fuse_norms(short)
    assert kept(short) < kept(plain) / 2


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_other_norms_are_left_alone(family: str) -> None:
    model: nn.Module = GemmaForCausalLM(GemmaConfig(**SMALL)) if family == "gemma" else tiny_gpt2()
    before = [type(module) for module in model.modules()]
    assert fuse_norms(model) == 0
    assert [type(module) for module in model.modules()] == before


def test_64_bits_are_computed_as_before() -> None:
    """transformers computes them in 32, and what is compared with it must be equal to it."""
    llama: Any = tiny_llama()
    plain = llama.double()
    short = copy.deepcopy(plain)
    fuse_norms(short)
    ids = torch.arange(6)[None]
    assert torch.equal(plain(input_ids=ids).logits, short(input_ids=ids).logits)
