import copy

import pytest
import torch
from lightning_ft_optimizers.muon import Muon
from lightning_ft_optimizers.parts import divided
from torch import Tensor, nn

from lightning_ft import optim
from lightning_ft.testing.models import tiny_model

LR = 3e-3


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 4, bias=False))


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz as Jordan et al. 2024 write it, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.double() / matrix.double().norm()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(7, 7), (5, 12), (12, 5)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_matrix_moves_as_the_papers_say(shape: tuple[int, int], nesterov: bool) -> None:
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(shape))
    optimizer = Muon([weight], lr=LR, momentum=0.9, nesterov=nesterov, weight_decay=0.2)
    expected, buffer = weight.detach().double(), torch.zeros(shape, dtype=torch.float64)
    for _ in range(4):
        gradient = torch.randn(shape)
        weight.grad = gradient
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * gradient.double()
        ahead = 0.1 * gradient.double() + 0.9 * buffer if nesterov else buffer
        expected = (1 - LR * 0.2) * expected - 0.2 * max(shape) ** 0.5 * LR * orthogonal(ahead)
    # torch iterates in bfloat16: each of four updates of size `step` may be wrong by a few of its 2^-8.
    step = 0.2 * max(shape) ** 0.5 * LR
    assert (weight - expected).abs().max() < 4 * step * 2**-5
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert (weight - start).abs().max() > step  # so the tolerance is far below what is measured


def test_everything_else_is_adamw_bit_for_bit() -> None:
    model, twin = model_of(), model_of()
    optimizer = Muon(optim.param_groups(model, 0.1), lr=LR, betas=(0.8, 0.9), eps=1e-6)
    table, *vectors = (twin.get_parameter(name) for name in ("0.weight", "1.bias", "2.weight", "2.bias"))
    groups = [{"params": [table], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.8, 0.9), eps=1e-6, fused=True)
    for seed in range(3):
        give_gradients(model, seed)
        give_gradients(twin, seed)
        optimizer.step()
        adamw.step()
    for name in ("0.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(model.get_parameter(name), twin.get_parameter(name)), name
    for name in ("1.weight", "3.weight"):
        assert not torch.equal(model.get_parameter(name), twin.get_parameter(name)), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_embeddings_and_the_output_layer_are_no_hidden_matrices(family: str) -> None:
    model = tiny_model(family)  # type: ignore[arg-type]  # the names are Literals
    optimizer = Muon(optim.param_groups(model, 0.1), lr=LR)
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = [names[id(p)] for group in optimizer.param_groups if "ns_steps" in group for p in group["params"]]
    rest = [names[id(p)] for group in optimizer.param_groups if "betas" in group for p in group["params"]]
    assert sorted([*hidden, *rest]) == sorted(names.values())
    assert hidden
    assert not [name for name in hidden if "emb" in name or "wte" in name or "wpe" in name or "head" in name]
    assert [name for name in rest if model.get_parameter(name).ndim == 2] == [
        name for name in rest if "emb" in name or "wte" in name or "wpe" in name or "head" in name
    ]


def test_state_and_schedule_are_those_of_one_optimiser() -> None:
    model, twin = model_of(), model_of()
    first = Muon(optim.param_groups(model, 0.1), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 1 / (1 + step))
    whole = Muon(optim.param_groups(twin, 0.1), lr=LR)
    whole_schedule = torch.optim.lr_scheduler.LambdaLR(whole, lambda step: 1 / (1 + step))
    for seed in range(4):
        if seed == 2:
            saved = copy.deepcopy(first.state_dict())
            first = Muon(optim.param_groups(model, 0.1), lr=LR)
            first.load_state_dict(saved)
            schedule_state = schedule.state_dict()
            schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 1 / (1 + step))
            schedule.load_state_dict(schedule_state)
            for group in first.param_groups:
                group["lr"] = LR / 3
        for net, optimizer, rates in ((model, first, schedule), (twin, whole, whole_schedule)):
            give_gradients(net, seed)
            optimizer.step()
            rates.step()
    assert {group["lr"] for group in first.param_groups} == {LR / 5}
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"betas": (1.2, 0.9)}, "beta"),
        ({"lr": -1.0}, "earning rate"),
        ({"ns_steps": 0}, "ns_steps"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon(optim.param_groups(model_of(), 0.1), **options)  # type: ignore[arg-type]  # wrong on purpose


def test_a_vector_in_the_shape_of_a_matrix_is_none() -> None:
    """As (IA)^3's factors and the biases of several experts."""
    matrix, factors = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.ones(6, 2))
    model = nn.ParameterDict({"weight": matrix, "experts_bias": factors})
    inner, rest = divided(optim.param_groups(model, 0.1), 0.1)
    assert [id(p) for group in inner for p in group["params"]] == [id(matrix)]
    assert [id(p) for group in rest for p in group["params"]] == [id(factors)]
