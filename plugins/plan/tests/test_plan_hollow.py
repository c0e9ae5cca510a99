from __future__ import annotations

import pytest
import torch
from lightning_ft_plan.hollow import ACTIVATIONS, GRADIENTS, MOST, WEIGHTS, Hollow, TooLongError
from lightning_ft_plan.machine import resident
from lightning_ft_plan.stand_ins import stand_ins
from torch import nn

from lightning_ft.engine.norm import fuse_norms

MIB = 2**20


def test_what_is_alive_is_counted_and_forgotten() -> None:
    with Hollow() as hollow:
        a = torch.empty(1024, 1024)
        b = a @ a
        view = b.view(-1)[5:]
        assert hollow.alive[ACTIVATIONS] == 8 * MIB
        del b
        assert hollow.alive[ACTIVATIONS] == 8 * MIB, "the view keeps it"
        del view
        assert hollow.alive[ACTIVATIONS] == 4 * MIB
        assert hollow.flops == 2 * 1024**3


def test_autograd_keeps_what_it_keeps() -> None:
    """With x (n, d) and W (d, d), the backward pass of sum(relu(x W)) needs x, and the output of the relu."""
    with Hollow() as hollow:
        weight = nn.Parameter(torch.empty(1024, 1024))
        hollow.assign(weight, WEIGHTS)
        weight.register_post_accumulate_grad_hook(lambda p: hollow.assign(p.grad, GRADIENTS))  # type: ignore[no-untyped-call]  # of torch
        x = torch.empty(2048, 1024)
        with hollow.window("forward"):
            loss = torch.relu(x @ weight).sum()
        assert hollow.alive == {WEIGHTS: 4 * MIB, ACTIVATIONS: 16 * MIB + 4}
        assert hollow.peaks["forward"] == {WEIGHTS: 4 * MIB, ACTIVATIONS: 24 * MIB}, "x, x W, and relu(x W)"
        del x
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        del loss
        assert {part: size for part, size in hollow.alive.items() if size > 8} == {WEIGHTS: 4 * MIB, GRADIENTS: 4 * MIB}


def test_nothing_is_touched() -> None:
    before = resident()
    with Hollow():
        layer = nn.Linear(20_000, 20_000, bias=False)  # 1.6 GB
        loss = layer(torch.empty(4096, 20_000)).square().mean()
        loss.backward()
    assert resident() - before < 64 * MIB


def test_values_are_answered() -> None:
    with Hollow():
        x = torch.empty(2000, 2000)
        assert x.sum().item() == 1.0
        assert bool(torch.isfinite(x).all())
        assert x[x > 0].numel() == 2000 * 2000
        assert len(torch.linalg.svdvals(x).tolist()) == 2000, "whatever lies in memory"


def test_a_change_of_shape_in_place_is_one() -> None:
    with Hollow():
        x = torch.empty(1000, 500)
        assert x.transpose_(0, 1).shape == x.shape == (500, 1000)
        assert x.unsqueeze_(0).squeeze_(0).shape == x.shape == (500, 1000)


def test_small_known_values_stay_what_they_are() -> None:
    with Hollow():
        positions = torch.arange(10).repeat(2)
        assert positions.tolist() == [*range(10), *range(10)]
        assert (positions == 0).nonzero()[:, 0].tolist() == [0, 10]
        assert torch.unique(positions).numel() == 10


def test_the_default_type_is_no_matter_of_the_cache() -> None:
    sizes = []
    for dtype in (torch.bfloat16, torch.float32):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with Hollow():
                sizes.append(torch.empty(777, 777).nbytes)
        finally:
            torch.set_default_dtype(before)
    assert sizes == [777 * 777 * 2, 777 * 777 * 4]


def test_a_rehearsal_without_end_is_given_up() -> None:
    def count_up() -> None:
        x = torch.zeros(4)
        for _ in range(MOST + 1):
            x.add_(1)

    with Hollow(), pytest.raises(TooLongError, match=f"more than {MOST:,} operations"):
        count_up()


def test_checks_of_the_products_own_kernels_see_numbers() -> None:
    """What they find is kept for the whole process, rehearsals and runs: a norm that was no norm there would be none here."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class FreshRMSNorm(LlamaRMSNorm):
        """One that nothing has met before."""

    with stand_ins(), Hollow():
        assert fuse_norms(nn.Sequential(FreshRMSNorm(32))) == 1
