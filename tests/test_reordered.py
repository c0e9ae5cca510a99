"""A frozen output layer in oneDNN's order gives what the plain products give, and never an old weight's logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_ft.engine import reordered as module
from lightning_ft.engine.cross_entropy import summed_cross_entropy
from lightning_ft.engine.reordered import ROWS, reordered

pytestmark = pytest.mark.skipif(not module._available(), reason="this torch or processor has no such products in bfloat16")


@pytest.fixture
def weight(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(module, "_SMALLEST", 0)
    torch.manual_seed(0)
    return torch.randn(301, 48).bfloat16()


@pytest.mark.parametrize("rows", [1, 31, ROWS, 2 * ROWS + 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss_and_gradient_are_those_of_the_plain_products(weight: Tensor, rows: int, with_bias: bool) -> None:
    hidden, targets, scale = torch.randn(rows, 48).bfloat16(), torch.randint(301, (rows,)), torch.rand(rows)
    bias = torch.randn(301).bfloat16() if with_bias else None
    assert reordered(weight) is not None
    ours = hidden.clone().requires_grad_()
    loss = summed_cross_entropy(ours, weight, bias, targets, scale)
    (grad,) = torch.autograd.grad(loss, ours)
    wide = hidden.float().requires_grad_()
    logits = F.linear(wide, weight.float(), None if bias is None else bias.float())
    wanted = (F.cross_entropy(logits, targets, reduction="none") * scale).sum()
    (wanted_grad,) = torch.autograd.grad(wanted, wide)
    torch.testing.assert_close(loss, wanted.detach(), rtol=5e-3, atol=0.05)
    assert (grad.float() - wanted_grad).norm() < 2e-2 * wanted_grad.norm()


@pytest.mark.parametrize("way", ["in place", "beside the first column", "data", "row by data"])
def test_changed_weight_is_seen(weight: Tensor, way: str) -> None:
    x = torch.randn(4, 48).bfloat16()
    first = reordered(weight)
    assert first is not None
    first.logits(x, None)
    assert reordered(weight) is first, "kept"
    if way == "in place":
        weight.mul_(2)
    elif way == "beside the first column":
        weight[:, 1:].mul_(2)
    elif way == "data":
        weight.data += 1
    else:
        weight.data[17] = 3
    second = reordered(weight)
    assert second is not None
    torch.testing.assert_close(second.logits(x, None), x @ weight.t(), rtol=2e-2, atol=0.1)


def test_weights_that_train_or_are_wide_or_small_or_too_large_take_the_plain_way(
    weight: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reordered(weight.clone().requires_grad_()) is None
    assert reordered(weight.float()) is None
    monkeypatch.setattr(module, "_memory", lambda: 16 * 2 * weight.nbytes - 1)
    assert reordered(weight) is None
    monkeypatch.undo()
    assert reordered(weight) is None, "small"


def test_nothing_is_kept_of_a_weight_that_is_gone(weight: Tensor) -> None:
    before = len(module._kept)
    other = weight.clone()
    assert reordered(other) is not None
    assert len(module._kept) == before + 1
    del other
    assert len(module._kept) == before
