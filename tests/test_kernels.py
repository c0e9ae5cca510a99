"""The kernels of a GPU against their formulas; without one by Triton's interpreter: `TRITON_INTERPRET=1 pytest ...`."""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Phi3Config, Phi3ForCausalLM
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as of_pairs

from lightning_ft.engine.gated import _rotates_halves, fuse_gates, fuse_rotations
from lightning_ft.testing.models import tiny_gpt2, tiny_llama

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> Any:
    if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1")
    from lightning_ft.engine import triton_kernels

    return triton_kernels


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def test_the_gated_unit_and_its_gradients(kernels: Any) -> None:
    gate, up, grad = (drawn(3, 777, seed=n) for n in range(3))
    gate.requires_grad_()
    up.requires_grad_()
    out = nn.functional.silu(gate) * up
    out.backward(grad)  # type: ignore[no-untyped-call]  # of torch
    torch.testing.assert_close(kernels.gated(gate.detach(), up.detach()), out.detach())
    found = kernels.gated_backward(grad, gate.detach(), up.detach())
    torch.testing.assert_close(found, (gate.grad, up.grad))


@pytest.mark.parametrize(("heads", "width", "tables"), [(5, 24, 2), (20, 64, 1), (1, 8, 2)])
def test_rotations_and_their_gradients(kernels: Any, heads: int, width: int, tables: int) -> None:
    x = drawn(2, 7, heads, width).transpose(1, 2).requires_grad_()
    cos, sin = drawn(tables, 7, width, seed=1), drawn(tables, 7, width, seed=2)
    one, two = x.chunk(2, -1)
    out = x * cos[:, None] + torch.cat((-two, one), -1) * sin[:, None]
    grad = drawn(*out.shape, seed=3)
    out.backward(grad)  # type: ignore[no-untyped-call]  # of torch
    found = kernels.rotated(x.detach(), cos, sin)
    torch.testing.assert_close(found, out.detach())
    assert found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(kernels.rotated(grad, cos, sin, back=True), x.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [7, 4096, 9001])
def test_likelihoods_and_their_gradients(kernels: Any, size: int, smoothing: float) -> None:
    logits = (3 * drawn(6, size)).requires_grad_()
    targets = torch.tensor([0, size - 1, 3, int(logits[3].argmax()), 1, 2], device=DEVICE)
    nll = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    nll.sum().backward()  # type: ignore[no-untyped-call]  # of torch
    low, hits = logits.detach().clone(), torch.empty(6, dtype=torch.bool, device=DEVICE)
    torch.testing.assert_close(kernels.likelihood(low, targets, hits, smoothing, gradient=False), nll.detach())
    assert torch.equal(low, logits.detach())
    torch.testing.assert_close(kernels.likelihood(low, targets, None, smoothing, gradient=True), nll.detach())
    torch.testing.assert_close(low, logits.grad)
    assert hits.tolist() == (logits.argmax(-1) == targets).tolist()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_what_is_not_finite_stays_so(kernels: Any) -> None:
    logits = drawn(3, 50)
    logits[0, 7], logits[1, 8] = float("nan"), float("inf")
    nll = kernels.likelihood(logits, torch.tensor([1, 2, 3], device=DEVICE), None, 0.0, gradient=True)
    assert nll.isfinite().tolist() == [False, False, True]


def test_a_model_on_a_cpu_computes_what_it_did() -> None:
    plain: Any = tiny_llama()
    short = copy.deepcopy(plain)
    assert fuse_gates(short) == plain.config.num_hidden_layers
    assert fuse_rotations(short) == 1
    assert fuse_rotations(plain) == 1, "the function of a file is replaced once"
    assert type(short.model.layers[0].mlp).__name__ == "LlamaMLP"
    ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(short(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert short.state_dict().keys() == plain.state_dict().keys()


def test_other_functions_are_left_alone() -> None:
    others: list[Any] = [tiny_gpt2(), Gemma2ForCausalLM(Gemma2Config(**SMALL)), Phi3ForCausalLM(Phi3Config(**SMALL))]
    assert [fuse_gates(model) for model in others] == [0, 0, 0]
    assert not _rotates_halves(of_pairs), "GLM rotates neighbours"

    class Scaled(type(tiny_llama().model.layers[0].mlp)):  # type: ignore[misc]  # a class found at run time
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2  # type: ignore[no-any-return]  # of that class

    model: Any = tiny_llama()
    model.model.layers[0].mlp.__class__ = Scaled
    assert fuse_gates(model) == model.config.num_hidden_layers - 1


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_a_gpu_computes_what_it_did(dtype: torch.dtype) -> None:
    plain: Any = tiny_llama()
    plain.to("cuda", dtype)
    theirs = vars(sys.modules[type(plain).__module__])
    ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(0)).cuda()
    original = getattr(theirs["apply_rotary_pos_emb"], "__wrapped__", theirs["apply_rotary_pos_emb"])
    theirs["apply_rotary_pos_emb"] = original
    short = copy.deepcopy(plain)
    found = []
    for model in (plain, short):
        if model is short:
            fuse_gates(short)
            fuse_rotations(short)
        logits = model(input_ids=ids).logits
        logits.float().logsumexp(-1).sum().backward()
        found.append((logits.detach(), [p.grad for p in model.parameters()]))
    allowed = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip((found[0][0], *found[0][1]), (found[1][0], *found[1][1]), strict=True):
        assert float((a.double() - b.double()).norm() / a.double().norm()) < allowed
