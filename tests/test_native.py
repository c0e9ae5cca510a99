"""The compiled kernels against their formulas in float64, and what happens where there is no compiler."""

from __future__ import annotations

import copy
import os
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ft.data.collate import pack
from lightning_ft.engine import kernels, native_kernels
from lightning_ft.engine.gated import fuse_gates, fuse_rotations
from lightning_ft.engine.loss import token_loss
from lightning_ft.engine.norm import fuse_norms
from lightning_ft.testing.models import tiny_llama
from lightning_ft.types import Encoded

if TYPE_CHECKING:
    from pathlib import Path

ROUNDING = 2**-8
"""Half the distance of two neighbours in bfloat16, relative to them, is below this."""


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs a C compiler")
    assert native_kernels.library() is not None, "what it makes is wrong"


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def close(found: Tensor, expected: Tensor, rtol: float = ROUNDING, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", [(3, 777), (1, 1), (64, 32)])
def test_the_gated_unit_and_its_gradients(shape: tuple[int, int]) -> None:
    gate, up, grad = drawn(*shape, scale=4), drawn(*shape, seed=1), drawn(*shape, seed=2)
    g, u = gate.double().requires_grad_(), up.double().requires_grad_()
    out = nn.functional.silu(g) * u
    out.backward(grad.double())  # type: ignore[no-untyped-call]  # of torch
    close(native_kernels.gated(gate, up), out.detach())
    d_gate, d_up = native_kernels.gated_backward(grad, gate, up)
    assert g.grad is not None
    assert u.grad is not None
    close(d_gate, g.grad, atol=1e-5)
    close(d_up, u.grad)


def test_exponentials_far_out() -> None:
    gate = torch.tensor([-1e4, -200, -88, -87, 0, 87, 88, 200, 1e4, float("nan"), float("inf")]).bfloat16()
    up = torch.ones_like(gate)
    found = native_kernels.gated(gate, up)
    close(found[:9], nn.functional.silu(gate.double())[:9], atol=1e-30)
    assert found[9].isnan()
    assert found[10] == float("inf")


@pytest.mark.parametrize(("rows", "heads", "width", "tables"), [(2, 5, 24, 2), (2, 4, 64, 1), (1, 1, 2, 1)])
def test_rotations_and_their_gradients(rows: int, heads: int, width: int, tables: int) -> None:
    x = drawn(rows, 7, heads, width).transpose(1, 2)
    cos, sin = drawn(tables, 7, width, seed=1), drawn(tables, 7, width, seed=2)
    leaf = x.double().requires_grad_()
    one, two = leaf.chunk(2, -1)
    out = leaf * cos.double()[:, None] + torch.cat((-two, one), -1) * sin.double()[:, None]
    grad = drawn(*out.shape, seed=3)
    out.backward(grad.double())  # type: ignore[no-untyped-call]  # of torch
    found = native_kernels.rotated(x, cos, sin)
    close(found, out.detach(), atol=1e-3)
    assert found.transpose(1, 2).is_contiguous()
    assert leaf.grad is not None
    close(native_kernels.rotated(grad, cos, sin, back=True), leaf.grad, atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [7, 4096, 9001])
def test_likelihoods_and_their_gradients(size: int, smoothing: float) -> None:
    logits = drawn(6, size, scale=3)
    logits[4, 1] = 60  # as good as certain
    targets = torch.tensor([0, size - 1, 3, int(logits[3].argmax()), 1, 2])
    leaf = logits.double().requires_grad_()
    nll = nn.functional.cross_entropy(leaf, targets, reduction="none", label_smoothing=smoothing)
    nll.sum().backward()  # type: ignore[no-untyped-call]  # of torch
    low, hits = logits.clone(), torch.empty(6, dtype=torch.bool)
    close(native_kernels.likelihood(low, targets, hits, smoothing, gradient=False), nll.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(low, logits)
    close(native_kernels.likelihood(low, targets, None, smoothing, gradient=True), nll.detach(), rtol=1e-5, atol=1e-5)
    assert leaf.grad is not None
    close(low, leaf.grad, atol=1e-7)
    assert hits.tolist() == (logits.argmax(-1) == targets).tolist()


def test_what_is_not_finite_stays_so() -> None:
    logits = drawn(3, 50)
    logits[0, 7], logits[1, 8] = float("nan"), float("inf")
    nll = native_kernels.likelihood(logits, torch.tensor([1, 2, 3]), None, 0.0, gradient=True)
    assert nll.isfinite().tolist() == [False, False, True]
    scores = drawn(1, 16, 16)
    scores[0, 3, 1] = float("nan")
    assert native_kernels.causal(scores, 16, 0)[0].isfinite().all(-1).tolist() == [n != 3 for n in range(16)]
    x = drawn(2, 8)
    x[1, 2] = float("inf")
    assert native_kernels.norm(x, drawn(8), 1e-6)[0].isfinite().all(-1).tolist() == [True, False]


@pytest.mark.parametrize("size", [16, 33, 512])
def test_norms_and_their_gradients(size: int) -> None:
    x, weight, grad = drawn(5, 3, size), drawn(size, seed=1), drawn(5, 3, size, seed=2)
    leaf = x.double().requires_grad_()
    out = weight.double() * leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + 1e-5)
    out.backward(grad.double())  # type: ignore[no-untyped-call]  # of torch
    found, scale = native_kernels.norm(x, weight, 1e-5)
    close(found, out.detach(), rtol=2 * ROUNDING)  # rounded before the weight, too
    assert scale.shape == (5, 3, 1)
    d_x, d_weight = native_kernels.norm_backward(grad, x, weight, scale, trains=True)
    assert leaf.grad is not None
    assert d_weight is not None
    close(d_x, leaf.grad, atol=1e-5)
    normed = (x.float() * scale).bfloat16()
    close(d_weight, (grad.double() * normed.double()).sum((0, 1)), rtol=1e-4, atol=1e-4)
    assert native_kernels.norm_backward(grad, x, weight, scale, trains=False)[1] is None


@pytest.mark.parametrize(("block", "start", "width"), [(16, 0, 16), (32, 32, 64), (48, 256, 304)])
def test_the_causal_softmax_and_its_gradient(block: int, start: int, width: int) -> None:
    scores, grad = drawn(2, 3 * block, width, scale=3), drawn(2, 3 * block, width, seed=1)
    seen = torch.ones(block, width).tril(start).bool().repeat(3, 1)
    leaf = scores.double().requires_grad_()
    p = leaf.masked_fill(~seen, float("-inf")).softmax(-1)
    found = native_kernels.causal(scores.clone(), block, start)
    close(found, p.detach())
    assert bool((found[:, ~seen] == 0).all())
    p.backward(grad.double())  # type: ignore[no-untyped-call]  # of torch
    assert leaf.grad is not None
    close(native_kernels.causal_backward(grad.clone(), p.detach().bfloat16(), block, start), leaf.grad, atol=2e-2)


def trained(model: Any) -> list[Tensor]:
    """The loss of packed rows, and all gradients."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(60, (n,), generator=draw).tolist() for n in (40, 23, 7)]
    total, count = token_loss(model, pack([Encoded(ids, ids, f"a:{n}") for n, ids in enumerate(rows)]))
    (total / count).backward()  # type: ignore[no-untyped-call]  # of torch
    return [(total / count).detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("which", ["on_cpu", "matrix"])
def test_a_model_trains_as_without_them(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float32, nearer than without all of them, or those of matrix units, which rounds more often; or as near."""
    if getattr(kernels, which)(drawn(1)) is None:
        pytest.skip("needs a processor with matrix units")
    exact: Any = tiny_llama()
    models = [copy.deepcopy(exact).bfloat16() for _ in range(2)]
    for model in models:
        fuse_norms(model)
        fuse_gates(model)
        fuse_rotations(model)
    expected, ours = trained(exact), trained(models[0])
    monkeypatch.setattr(kernels, which, lambda *tensors: None)
    without = trained(models[1])

    def distance(found: list[Tensor]) -> float:
        pairs = [(f.double(), e.double()) for f, e in zip(found[1:], expected[1:], strict=True)]
        gap, size = sum(float((f - e).square().sum()) for f, e in pairs), sum(float(e.square().sum()) for _, e in pairs)
        return float((gap / size) ** 0.5)

    assert distance(ours) < 1.1 * distance(without) < 0.1
    assert not torch.equal(ours[1], without[1]), "they were used"


def test_other_tensors_have_none() -> None:
    assert kernels.on_cpu(torch.ones(2)) is None
    assert kernels.on_cpu(drawn(2), torch.ones(2)) is None
    assert kernels.on_cpu(drawn(2), None) is not None


@pytest.mark.parametrize("wrong", [-1, -100, 50])
def test_targets_beside_the_vocabulary_are_refused(wrong: int) -> None:
    """As torch does; C would write into somebody else's memory."""
    logits = drawn(2, 50)
    with pytest.raises(IndexError, match="targets from 0 to 49"):
        native_kernels.likelihood(logits, torch.tensor([3, wrong]), None, 0.0, gradient=True)


def test_tensors_without_memory_of_their_own_have_none() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(4, dtype=torch.bfloat16)
    assert kernels.on_cpu(fake) is None
    assert kernels.of(fake) is None
    assert kernels.on_cpu(nn.Parameter(drawn(4))) is not None


def library_in(tmp_path: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    code = "from lightning_ft.engine.native_kernels import library; print(library() is not None)"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **changes}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)


def test_they_are_compiled_once(tmp_path: Path) -> None:
    assert library_in(tmp_path).stdout == "True\n"
    (made,) = (tmp_path / "cache").rglob("*.so")
    before = made.stat().st_mtime_ns
    assert library_in(tmp_path).stdout == "True\n"
    assert [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.so")] == [before]
    made.write_bytes(b"cut off")
    assert library_in(tmp_path).stdout == "True\n", "what does not load is made again"


def test_without_a_compiler_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert library_in(tmp_path, PATH=str(tmp_path / "bin")).stdout == "False\n"
    broken = tmp_path / "bin" / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    assert library_in(tmp_path, PATH=f"{tmp_path / 'bin'}:/bin").stdout in ("True\n", "False\n"), "the next one is asked"
    assert library_in(tmp_path, LIGHTNING_FT_NATIVE="off").stdout == "False\n"
    unwritable = tmp_path / "file"
    unwritable.write_text("")
    assert library_in(tmp_path, XDG_CACHE_HOME=str(unwritable)).stdout == "True\n", "a cache is not needed"
