"""Products and attention by a CPU's matrix units against their formulas in float64."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from lightning_ft.engine import kernels, matrix_units
from lightning_ft.engine.cross_entropy import summed_cross_entropy
from lightning_ft.engine.native_kernels import has_matrix_units, library

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDING = 2**-8


@pytest.fixture(autouse=True)
def _there() -> None:
    made = library()
    if made is None or not has_matrix_units(made):
        pytest.skip("needs a C compiler and a processor with matrix units")
    assert matrix_units.work(), "what they compute is wrong"


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(found: Tensor, expected: Tensor, atol: float, rtol: float = ROUNDING) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


# ---- products -------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1), (16, 16, 32), (17, 33, 31), (32, 32, 1024), (33, 16, 1025), (5, 1100, 40), (70, 48, 2100), (200, 513, 64)]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_products_are_sums_rounded_once(m: int, n: int, k: int, across: bool, threads: int) -> None:
    """All rests of blocks: rows, columns, depth, several panels and depths; and rows that are part of a wider matrix."""
    a, b = drawn(m, k + 3)[:, :k], drawn(n, k, seed=1) if across else drawn(k, n, seed=1)
    around = torch.full((m + 2, n + 5), 7.0).bfloat16()
    out = around[1:-1, 2:-3]
    assert matrix_units.product(a, b, across=across, out=out) is out
    close(out, a.double() @ (b.double().t() if across else b.double()), atol=1e-5 * math.sqrt(k))
    out.fill_(7)
    assert bool((around == 7).all()), "nothing is written beside it"


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("rank", [1, 16, 20, 40, 64])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_layer_with_its_adapter(m: int, n: int, k: int, rank: int, across: bool, threads: int) -> None:
    shapes = [(n, k), (rank, k), (n, rank)] if across else [(k, n), (k, rank), (rank, n)]
    a, (b, u, v) = drawn(m, k), (drawn(*shape, seed=seed) for seed, shape in enumerate(shapes, 1))
    wide = [t.double().t() if across else t.double() for t in (b, u, v)]
    out, thin = matrix_units.adapted(a, b, u, v, across=across)
    close(thin, a.double() @ wide[1], atol=1e-5 * math.sqrt(k))
    close(out, a.double() @ wide[0] + thin.double() @ wide[2], atol=1e-4 * math.sqrt(k))


def test_a_product_does_not_depend_on_the_number_of_threads() -> None:
    a, b, before = drawn(100, 1500), drawn(1500, 700, seed=1), torch.get_num_threads()
    found = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        found.append(matrix_units.product(a, b))
    torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    ("a", "b", "out"), [((2, 3), (4, 5), None), ((2, 3), (3, 5), (2, 4)), ((2, 3), (3, 5), (3, 5)), ((2, 3), (5, 3), None)]
)
def test_shapes_that_do_not_fit_are_refused(a: Any, b: Any, out: Any) -> None:
    """C would read and write somebody else's memory."""
    with pytest.raises(ValueError, match="Expected matrices that can be multiplied"):
        matrix_units.product(drawn(*a), drawn(*b), out=None if out is None else drawn(*out))


@pytest.mark.parametrize("wrong", range(3))
@pytest.mark.parametrize("across", [False, True])
def test_adapters_that_do_not_fit_are_refused(wrong: int, across: bool) -> None:
    shapes = [(6, 5), (2, 5), (6, 2)] if across else [(5, 6), (5, 2), (2, 6)]
    b, u, v = (drawn(*((shape[0] + 1, shape[1]) if n == wrong else shape)) for n, shape in enumerate(shapes))
    with pytest.raises(ValueError, match="Expected matrices that can be multiplied"):
        matrix_units.adapted(drawn(4, 5), b, u, v, across=across)


def test_what_is_not_finite_stays_so() -> None:
    a = drawn(40, 40)
    a[3, 1], a[20, 2] = math.nan, math.inf
    found = matrix_units.product(a, drawn(40, 40, seed=1)).isfinite()
    assert found.all(1).tolist() == [n not in (3, 20) for n in range(40)]
    assert not found[3].any()


def test_tensors_that_they_cannot_read_are_left_to_torch() -> None:
    whole = drawn(4, 6)
    assert kernels.matrix(whole, whole[:, 2:]) is not None
    assert kernels.matrix(whole.t()) is None, "rows do not lie in one piece"
    assert kernels.matrix(whole.float()) is None
    assert kernels.matrix(whole, whole[:0]) is None
    assert kernels.matrix(drawn(1).expand(4, 6)) is None


# ---- attention ------------------------------------------------------------------------------------------------------


def formula(q: Tensor, k: Tensor, v: Tensor, borders: tuple[int, ...], scale: float) -> Tensor:
    """(T, H, E)."""
    parts = []
    k, v = (t.repeat_interleave(len(q) // len(t), 0) for t in (k, v))
    for start, end in itertools.pairwise(borders):
        one, two, three = (t[:, start:end] for t in (q, k, v))
        hidden = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        scores = (one @ two.transpose(1, 2) * scale).masked_fill(hidden, -math.inf)
        parts.append((scores.softmax(-1) @ three).transpose(0, 1))
    return torch.cat(parts)


LENGTHS = [(1,), (16,), (31, 32, 33), (64, 65), (7, 200, 1, 90)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "groups", "depth", "width"), [(4, 2, 64, 64), (2, 2, 8, 8), (3, 1, 48, 80), (2, 1, 128, 16)])
def test_attention_and_its_gradients(
    lengths: tuple[int, ...], heads: int, groups: int, depth: int, width: int, threads: int
) -> None:
    borders = tuple(sum(lengths[:n]) for n in range(len(lengths) + 1))
    shapes = [(borders[-1], heads, depth), (borders[-1], groups, depth), (borders[-1], groups, width)]
    q, k, v = (drawn(*shape, seed=n).transpose(0, 1) for n, shape in enumerate(shapes))
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    expected = formula(leaves[0], leaves[1], leaves[2], borders, 0.3)
    grad = drawn(*expected.shape, seed=4)
    expected.backward(grad.double())  # type: ignore[no-untyped-call]  # of torch
    out, sums = matrix_units.attend(q, k, v, borders, 0.3)
    close(out, expected.detach(), atol=2e-2, rtol=2 * ROUNDING)
    found = matrix_units.attend_backward((q, k, v), out, grad, sums, borders, 0.3)
    for one, leaf in zip(found, leaves, strict=True):
        assert leaf.grad is not None
        gap, size = (one.transpose(0, 1).double() - leaf.grad).norm(), leaf.grad.norm()
        assert gap <= 6e-3 * size + 2e-2, "about a rounding of the probabilities and one of the result"


def test_a_document_does_not_see_what_lies_beside_it() -> None:
    """Not even where that is not finite: what a block multiplies beyond the document is 0."""
    q, k, v = (drawn(90, 2, 16, seed=n).transpose(0, 1) for n in range(3))
    alone = matrix_units.attend(q[:, 20:57], k[:, 20:57], v[:, 20:57], (0, 37), 0.25)[0]
    for t in (q, k, v):
        t[:, :20] = math.nan
        t[:, 57:] = math.nan
    among = matrix_units.attend(q, k, v, (0, 20, 57, 90), 0.25)[0]
    assert torch.equal(among[20:57], alone)
    assert bool(among[:20].isnan().all())


@pytest.mark.parametrize(
    ("q", "k", "v", "borders"),
    [
        ((2, 9, 4), (2, 9, 4), (2, 9, 4), (0, 10)), ((2, 9, 4), (2, 9, 4), (2, 9, 4), (0, 5, 3, 9)),
        ((3, 9, 4), (2, 9, 4), (2, 9, 4), (0, 9)), ((2, 9, 4), (2, 9, 5), (2, 9, 5), (0, 9)),
        ((2, 9, 4), (2, 9, 4), (1, 9, 4), (0, 9)), ((2, 9, 4), (2, 8, 4), (2, 9, 4), (0, 9)),
    ],
)  # fmt: skip
def test_heads_and_borders_that_do_not_fit_are_refused(q: Any, k: Any, v: Any, borders: Any) -> None:
    with pytest.raises(ValueError, match="Expected heads and documents of one row"):
        matrix_units.attend(drawn(*q), drawn(*k), drawn(*v), borders, 0.5)


def test_large_scores_do_not_overflow() -> None:
    q = (drawn(2, 40, 16) * 100).bfloat16()
    out, sums = matrix_units.attend(q, q, drawn(2, 40, 16, seed=1), (0, 40), 1.0)
    assert bool(out.isfinite().all())
    grads = matrix_units.attend_backward((q, q, q), out, out, sums, (0, 40), 1.0)
    assert all(bool(grad.isfinite().all()) for grad in grads)


# ---- in the loss ----------------------------------------------------------------------------------------------------


def test_the_loss_and_its_gradient_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = drawn(70, 48), drawn(300, 48, seed=1), torch.arange(70)
    found, calls, theirs = [], [], matrix_units.product

    def product(a: Tensor, b: Tensor, *, across: bool = False, out: Tensor | None = None) -> Tensor:
        calls.append(across)
        return theirs(a, b, across=across, out=out)

    assert kernels.matrix(hidden) is not None, "which tries them once"
    monkeypatch.setattr(matrix_units, "product", product)
    for on in (True, False):
        if not on:
            monkeypatch.setattr(kernels, "matrix", lambda *tensors: None)
        leaf = hidden.clone().requires_grad_()
        loss = summed_cross_entropy(leaf, weight, None, targets, chunk=32)
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
        assert leaf.grad is not None
        found.append((loss.detach(), leaf.grad))
    close(found[0][0], found[1][0], atol=0, rtol=1e-3)
    assert calls == [True, False] * 3, "they were used: the logits and the gradient of each chunk"
    assert float((found[0][1] - found[1][1]).double().norm() / found[1][1].double().norm()) < 1e-2


def test_a_layer_with_an_adapter_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; that it computes what peft's does is said in the plugin's own tests."""
    from lightning_ft_methods.fused import fuse
    from peft import LoraConfig, get_peft_model

    calls, theirs = [], matrix_units.adapted

    def adapted(a: Tensor, b: Tensor, u: Tensor, v: Tensor, *, across: bool = False) -> tuple[Tensor, Tensor]:
        calls.append(across)
        return theirs(a, b, u, v, across=across)

    monkeypatch.setattr(matrix_units, "adapted", adapted)
    model: Any = get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 48)).bfloat16(), LoraConfig(target_modules=["0"]))
    fuse(model)
    out = model(drawn(40, 32).requires_grad_())
    (out * drawn(40, 48, seed=1)).sum().backward()
    assert calls == [True, False]
