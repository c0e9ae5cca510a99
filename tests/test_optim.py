import copy
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_ft import optim
from lightning_ft.testing.models import FAMILIES, tiny_model


@pytest.mark.parametrize("name", ["ia3", "boft"])
def test_factors_that_begin_at_1_do_not_decay_to_0(name: str) -> None:
    """They have the shape of a matrix with one row or column."""
    pytest.importorskip("lightning_ft_methods")
    from lightning_ft.registry import registry
    from lightning_ft.testing.methods import attach

    model = attach(registry().methods[name].cls(), "llama")
    found = [(id(p), group["weight_decay"]) for group in optim.param_groups(model, 0.1) for p in group["params"]]
    factors = [p for n, p in model.named_parameters() if p.requires_grad and any(part in n for part in ("ia3_l", "boft_s"))]
    assert factors
    assert {decay for of, decay in found if of in set(map(id, factors))} == {0.0}
    assert len(found) == sum(p.requires_grad for p in model.parameters()), "each in one group"


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1, bias=False))
    model[0].weight.requires_grad_(False)
    decayed, plain = optim.param_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [id(p) for p in decayed["params"]] == [id(model[2].weight)]
    assert plain["weight_decay"] == 0
    assert [id(p) for p in plain["params"]] == [id(model[0].bias), id(model[1].weight), id(model[1].bias)]


def test_embeddings_and_the_output_layer_are_marked() -> None:
    for family in FAMILIES:
        model = tiny_model(family)
        inner, outer, vectors = optim.param_groups(model, 0.1)
        assert outer["embedding"] is True
        assert "embedding" not in inner | vectors
        own = {id(p) for name, p in model.named_parameters() if re.search("emb|wte|wpe|head", name)}
        assert own
        assert own == {id(p) for p in outer["params"]}
        assert sum(len(group["params"]) for group in (inner, outer, vectors)) == len(list(model.parameters()))


def test_there_is_no_empty_group() -> None:
    assert len(optim.param_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0.03, 100, 3), (0.03, 10, 1), (0, 10, 0), (0.5, 3, 2), (5, 100, 5), (5, 3, 2), (0.99, 1, 0), (1, 10, 1)],
)
def test_warmup_is_a_share_below_one_and_else_a_number(warmup: float, total: int, steps: int) -> None:
    assert optim.warmup_steps(warmup, total) == steps


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 2 of 6 steps warm up: 1/3, 2/3; then x = 0, 1/4, 2/4, 3/4 and, after the last step, 1.
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
    ],
)
def test_multiplier_by_hand(name: str, expected: list[float]) -> None:
    factor = optim.multiplier(name, 6, 2)  # type: ignore[arg-type]  # the names are Literals
    assert [factor(step) for step in range(7)] == pytest.approx(expected, abs=1e-15)


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(1, 50), st.floats(0, 60))
def test_multiplier_is_never_zero_within_the_run(name: str, total: int, warmup: float) -> None:
    factor = optim.multiplier(name, total, warmup)  # type: ignore[arg-type]  # the names are Literals
    assert all(0 < factor(step) <= 1 for step in range(total))


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_norm_and_clip_are_those_of_torch(limit: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 3))
    model(torch.randn(7, 5)).square().sum().backward()
    model[2].weight.grad = None
    theirs = copy.deepcopy(model)
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    params = list(model.parameters())
    norm = optim.grad_norm(params)
    torch.testing.assert_close(norm, expected, rtol=0, atol=0)
    optim.clip(params, norm, limit)
    for p, q in zip(params, theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


def test_norm_without_gradients_is_zero() -> None:
    assert optim.grad_norm([nn.Parameter(torch.ones(2))]) == 0


def test_the_norm_of_gradients_of_16_bits_is_not_rounded_to_16_bits() -> None:
    params = [nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(3)]
    for p in params:
        p.grad = torch.ones_like(p)
    assert float(optim.grad_norm(params)) == pytest.approx(math.sqrt(3000), rel=1e-6)


@pytest.mark.parametrize("options", [{"trainable_token_indices": [5, 6]}, {}], ids=["new tokens", "LoRA"])
def test_what_an_adapter_adds_to_an_embedding_is_marked(options: dict[str, Any]) -> None:
    """Muon and GaLore are for matrices inside the network."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj"] if options else ["q_proj", "embed_tokens"]
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=targets, **options))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optim.param_groups(model, 0.1)
    outer = {names[id(p)] for group in groups if group.get("embedding") for p in group["params"]}
    assert len(outer) == (1 if options else 2)
    assert all("embed_tokens" in name for name in outer)
    inner = [names[id(p)] for group in groups if not group.get("embedding") for p in group["params"]]
    assert inner
    assert all("q_proj" in name for name in inner)
