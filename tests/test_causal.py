from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_ft.engine import causal, document
from lightning_ft.engine.causal import causal_attention
from lightning_ft.engine.document import attend


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


def with_gradients(function: Any, tensors: list[Tensor], *args: Any) -> list[Tensor]:
    """The output, and the gradients of query, key and value under a gradient that differs everywhere."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves, *args)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).sin()
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), leaves)]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 29, 130])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)], ids=str)
def test_value_and_gradients_are_the_formulas(monkeypatch: pytest.MonkeyPatch, length: int, heads: tuple[int, int]) -> None:
    """In float64, over one block and over several, of which the last is not full."""
    monkeypatch.setattr(causal, "BLOCK", 8)
    tensors = inputs(length, torch.float64, heads)
    torch.testing.assert_close(with_gradients(causal_attention, tensors), with_gradients(formula, tensors))


def test_scaling_and_values_of_another_width() -> None:
    tensors = inputs(40, torch.float64, widths=(16, 24))
    found, expected = with_gradients(causal_attention, tensors, 0.3), with_gradients(formula, tensors, 0.3)
    torch.testing.assert_close(found, expected)
    assert found[0].shape == (1, 4, 40, 24)


@pytest.mark.parametrize("length", [200, 300])
def test_bfloat16_is_as_near_as_torchs_own_kernel(length: int) -> None:
    tensors = inputs(length, torch.bfloat16)
    truth = with_gradients(formula, [tensor.double() for tensor in tensors])
    found = with_gradients(causal_attention, tensors)
    theirs = with_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), tensors)
    for f, t, e in zip(found, theirs, truth, strict=True):
        assert f.dtype == torch.bfloat16
        assert (f.double() - e).norm() < 2 * (t.double() - e).norm()


def test_memory_does_not_grow_with_the_square() -> None:
    """What is kept for the backward pass are the three inputs."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    tensors = [tensor.requires_grad_() for tensor in inputs(600, torch.bfloat16)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        causal_attention(tensors[0], tensors[1], tensors[2])
    assert kept
    assert sum(t.numel() for t in kept) <= sum(t.numel() for t in tensors)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True), ({"length": 127}, False), ({"dtype": torch.float32}, False), ({"dropout": 0.1}, False),
        ({"sliding_window": 128}, False), ({"sliding_window": 200}, True), ({"softcap": 5.0}, False),
        ({"s_aux": torch.zeros(4)}, False),
    ],
    ids=str,
)  # fmt: skip
def test_long_plain_documents_in_bfloat16_take_it(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], taken: bool) -> None:
    calls: list[int] = []

    def spy(*args: Any) -> Tensor:
        calls.append(1)
        return causal_attention(*args)

    monkeypatch.setattr(document, "causal_attention", spy)
    given: dict[str, Any] = {"length": 150, "dtype": torch.bfloat16, "dropout": 0.0} | change
    q, k, v = inputs(given["length"], given["dtype"])
    out = attend(q, k, v, given["dropout"], None, given.get("sliding_window"), given.get("softcap"), given.get("s_aux"))
    assert bool(calls) == taken
    assert out.dtype == given["dtype"]
    if not set(change) & {"dropout", "sliding_window", "softcap", "s_aux"}:
        torch.testing.assert_close(out.double(), formula(q.double(), k.double(), v.double()), atol=0.02, rtol=0.02)
