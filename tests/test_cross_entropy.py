"""The chunked output layer and cross entropy on plain tensors; `test_loss.py` has it in models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from lightning_ft.engine import cross_entropy
from lightning_ft.engine.cross_entropy import chunked_nll, summed_cross_entropy, token_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (3, 2), (5, 5), (100, 4), (100, 100)])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_chunk_and_block_size_change_nothing(
    monkeypatch: pytest.MonkeyPatch, chunk: int, block: int, cap: float | None
) -> None:
    monkeypatch.setattr(cross_entropy, "_block", lambda *_: block)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(11, 8).double(), torch.randn(13, 8).double(), torch.randn(13).double()
    targets, scale = torch.randint(13, (11,)), torch.rand(11).double()
    leaves = (hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    logits = F.linear(hidden, weight, bias)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    nll = F.cross_entropy(logits, targets, reduction="none")
    wanted = torch.autograd.grad((nll * scale).sum() * 0.7, leaves)
    loss = summed_cross_entropy(hidden, weight, bias, targets, scale, cap=cap, chunk=chunk)
    torch.testing.assert_close(loss, (nll * scale).sum())
    torch.testing.assert_close(torch.autograd.grad(loss * 0.7, leaves), wanted)
    each = token_cross_entropy(hidden, weight, bias, targets, cap=cap, chunk=chunk)
    torch.testing.assert_close(each, nll)
    torch.testing.assert_close(torch.autograd.grad((each * scale).sum() * 0.7, leaves), wanted)


def test_second_backward_is_refused() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = summed_cross_entropy(hidden, torch.randn(13, 8), None, torch.randint(13, (4,)))
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # of torch
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]  # of torch


@pytest.mark.parametrize(
    ("positions", "most", "size"), [(0, 672, 0), (1, 672, 1), (600, 672, 600), (673, 672, 352), (928, 672, 480), (5, 3, 3)]
)
def test_chunks_are_of_about_equal_size(positions: int, most: int, size: int) -> None:
    """928 positions are 480 and 448, not 672 and 256: every chunk reads the whole weight."""
    assert cross_entropy._even(positions, most) == max(1, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """bf16 logits rounded once, everything after in float32, in blocks of a chunk: against the same by torch."""
    monkeypatch.setattr(cross_entropy, "_block", lambda *_: 5)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(64, 16).to(dtype), torch.randn(301, 16).to(dtype), torch.randint(301, (64,))
    weight = torch.nn.Parameter(weight)
    nll = chunked_nll(hidden, weight, None, targets, chunk=16)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="none").detach())
    loss = summed_cross_entropy(hidden.requires_grad_(), weight, None, targets, chunk=16)
    loss.backward()  # type: ignore[no-untyped-call]  # of torch
    grad = weight.grad
    assert grad is not None
    assert hidden.grad is not None
    assert grad.dtype == hidden.grad.dtype == dtype
    wide = weight.detach().float().requires_grad_()
    (wanted,) = torch.autograd.grad(F.cross_entropy((hidden.detach().float() @ wide.t()), targets, reduction="sum"), wide)
    assert (grad.float() - wanted).norm() < 2e-2 * wanted.norm()


def test_the_sum_over_many_positions_does_not_overflow_16_bits() -> None:
    """As with short answers, of which half of all tokens are the same."""
    torch.manual_seed(0)
    hidden = (110 + torch.randn(1200, 16).abs()).half().requires_grad_()
    weight, targets = torch.nn.Parameter(torch.zeros(64, 16)), torch.zeros(1200, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        summed_cross_entropy(hidden, weight, None, targets, chunk=1200).backward()  # type: ignore[no-untyped-call]  # of torch
    wide = torch.zeros(64, 16, requires_grad=True)
    (wanted,) = torch.autograd.grad(F.cross_entropy(hidden.detach().float() @ wide.t(), targets, reduction="sum"), wide)
    assert weight.grad is not None
    assert float(wanted.abs().max()) > torch.finfo(torch.float16).max
    assert (weight.grad - wanted).norm() < 2e-3 * wanted.norm()


def test_frozen_head_costs_no_gradient_and_full_logits_never_exist() -> None:
    """No tensor of the loss is as large as the logits, and with a frozen head none as large as its weight."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
        size = 0

        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() > self.size:
                known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
                if out.untyped_storage().data_ptr() not in known:
                    self.size = out.untyped_storage().nbytes()
            return out

    hidden, weight = torch.randn(600, 32, requires_grad=True), torch.randn(5000, 32)
    targets = torch.randint(5000, (600,))
    with Largest() as seen:  # type: ignore[no-untyped-call]  # of torch
        summed_cross_entropy(hidden, weight, None, targets, chunk=16).backward()  # type: ignore[no-untyped-call]  # of torch
    assert seen.size < weight.nbytes
    with Largest() as seen:  # type: ignore[no-untyped-call]  # of torch
        summed_cross_entropy(hidden, weight.requires_grad_(), None, targets, chunk=16).backward()  # type: ignore[no-untyped-call]  # of torch
    assert weight.nbytes <= seen.size < 600 * 5000 * 4
