from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_ft.engine import attention, causal, kernels
from lightning_ft.engine.attention import documents_attention
from lightning_ft.engine.causal import causal_attention


@pytest.fixture(autouse=True)
def _without_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which have an attention of their own (tests/test_matrix_units.py)."""
    monkeypatch.setattr(kernels, "matrix", lambda *tensors: None)


def inputs(
    length: int, dtype: torch.dtype, heads: tuple[int, int] = (4, 2), widths: tuple[int, int] = (16, 16)
) -> list[Tensor]:
    """Query, key and value as a model's layer has them: transposed views of (1, T, heads, width)."""
    generator = torch.Generator().manual_seed(length)
    shapes = ((heads[0], widths[0]), (heads[1], widths[0]), (heads[1], widths[1]))
    made = (torch.randn(1, length, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(dtype).transpose(1, 2) for tensor in made]


def formula(query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
    """softmax(s Q K^T + M) V, written out."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    length = query.shape[2]
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ value


def blockwise(query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
    """One document, as (1, H, T, E)."""
    return causal_attention(query, key, value, (0, query.shape[2]), scaling).transpose(1, 2)


def with_gradients(function: Any, tensors: list[Tensor], *args: Any) -> list[Tensor]:
    """The output, and the gradients of query, key and value under a gradient that differs everywhere."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves, *args)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).sin()
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), leaves)]


@pytest.mark.parametrize("kept", [0, 64], ids=["computed again", "kept"])
@pytest.mark.parametrize("length", [1, 7, 31, 32, 33, 130])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)], ids=str)
def test_value_and_gradients_are_the_formulas(
    monkeypatch: pytest.MonkeyPatch, length: int, heads: tuple[int, int], kept: int
) -> None:
    """In float64, over one block and over several, of which the last is not full."""
    monkeypatch.setattr(causal, "BLOCK", 32)
    monkeypatch.setattr(causal, "KEPT", kept)
    tensors = inputs(length, torch.float64, heads)
    torch.testing.assert_close(with_gradients(blockwise, tensors), with_gradients(formula, tensors))


@pytest.mark.parametrize("lengths", [(5, 1, 70, 33), (40,)], ids=str)
def test_documents_see_themselves_only(monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]) -> None:
    """A row of several documents is each of them alone, to the last bit."""
    monkeypatch.setattr(causal, "BLOCK", 32)
    monkeypatch.setattr(causal, "KEPT", 48)
    tensors = inputs(sum(lengths), torch.float64)
    borders = tuple(sum(lengths[:n]) for n in range(len(lengths) + 1))
    weights = torch.randn(1, sum(lengths), 4, 16, dtype=torch.float64)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = causal_attention(leaves[0], leaves[1], leaves[2], borders)
    grads = torch.autograd.grad((out * weights).sum(), leaves)
    for start, end in itertools.pairwise(borders):
        alone = [tensor[:, :, start:end].detach().requires_grad_() for tensor in tensors]
        one = causal_attention(alone[0], alone[1], alone[2], (0, end - start))
        assert torch.equal(out[:, start:end], one)
        for whole, part in zip(grads, torch.autograd.grad((one * weights[:, start:end]).sum(), alone), strict=True):
            assert torch.equal(whole[:, :, start:end], part)


def test_scaling_and_values_of_another_width() -> None:
    tensors = inputs(40, torch.float64, widths=(16, 24))
    found, expected = with_gradients(blockwise, tensors, 0.3), with_gradients(formula, tensors, 0.3)
    torch.testing.assert_close(found, expected)
    assert found[0].shape == (1, 4, 40, 24)


@pytest.mark.parametrize("length", [200, 300])
def test_bfloat16_is_as_near_as_torchs_own_kernel(length: int) -> None:
    tensors = inputs(length, torch.bfloat16)
    truth = with_gradients(formula, [tensor.double() for tensor in tensors])
    found = with_gradients(blockwise, tensors)
    theirs = with_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), tensors)
    for f, t, e in zip(found, theirs, truth, strict=True):
        assert f.dtype == torch.bfloat16
        assert (f.double() - e).norm() < 2 * (t.double() - e).norm()


def bytes_kept(length: int) -> int:
    """What stays until the backward pass, in bytes."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    query, key, value = (tensor.requires_grad_() for tensor in inputs(length, torch.bfloat16))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        blockwise(query, key, value)
    assert kept
    return sum(tensor.numel() for tensor in kept)


def test_memory_does_not_grow_with_the_square() -> None:
    """Of a long document only what is as long as its inputs is kept; of a short one the probabilities, too."""
    inputs_of_1024 = sum(tensor.numel() for tensor in inputs(1024, torch.bfloat16))
    assert bytes_kept(1024) == inputs_of_1024
    assert bytes_kept(2048) == 2 * inputs_of_1024
    assert bytes_kept(512) > inputs_of_1024


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True), ({"lengths": (5, 4)}, True), ({"dtype": torch.float32}, False), ({"dropout": 0.1}, False),
        ({"sliding_window": 128}, False), ({"sliding_window": 150}, True), ({"softcap": 5.0}, False),
        ({"s_aux": torch.zeros(4)}, False),
    ],
    ids=str,
)  # fmt: skip
def test_plain_rows_in_bfloat16_take_it(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], taken: bool, autocast: bool
) -> None:
    calls: list[torch.dtype] = []

    def spy(*args: Any) -> Tensor:
        out = causal_attention(*args)
        calls.append(out.dtype)
        return out

    monkeypatch.setattr(attention, "causal_attention", spy)
    given: dict[str, Any] = {"lengths": (150, 20), "dtype": torch.bfloat16} | change
    lengths, dtype = given.pop("lengths"), given.pop("dtype")
    q, k, v = (tensor.requires_grad_() for tensor in inputs(sum(lengths), dtype))
    with torch.autocast("cpu", enabled=autocast):
        out, _ = documents_attention(torch.nn.Identity(), q, k, v, None, cu_seq_lens=(0, lengths[0], sum(lengths)), **given)
        torch.autograd.backward(out.sum())
    assert calls == ([torch.bfloat16] if taken else [])
    assert out.dtype == dtype
    assert q.grad is not None
    assert q.grad.dtype == dtype
    if not set(change) & {"dropout", "sliding_window", "softcap", "s_aux"}:
        parts = zip(*(torch.split(t.detach().double(), lengths, 2) for t in (q, k, v)), strict=True)
        expected = torch.cat([formula(*part) for part in parts], 2).transpose(1, 2)
        torch.testing.assert_close(out.detach().double(), expected, atol=0.02, rtol=0.02)
