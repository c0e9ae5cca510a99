"""What holds of every optimiser of the plugin: state, resume, trial steps, odd gradients, refusals."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_ft_optimizers import register_optimizers
from lightning_ft_optimizers.adafactor import Adafactor
from lightning_ft_optimizers.apollo import APOLLO
from lightning_ft_optimizers.galore import GaLore
from lightning_ft_optimizers.lion import Lion
from lightning_ft_optimizers.muon import Muon
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

README = Path(__file__).parents[1] / "README.md"
SHAPES = {"tall": (12, 5), "wide": (5, 12), "square": (8, 8), "table": (11, 4), "vector": (7,)}
GAP = 3
VARIANTS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "Adafactor": (Adafactor, {}),
    "APOLLO": (APOLLO, {"update_proj_gap": GAP}),
    "APOLLO-Mini": (APOLLO, {"update_proj_gap": GAP, "scale_type": "tensor"}),
    "GaLore": (GaLore, {"update_proj_gap": GAP}),
    "Lion": (Lion, {}),
    "Muon": (Muon, {}),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
every = pytest.mark.parametrize("name", VARIANTS)


class Trial:
    """An optimiser and its weights: three matrices, a table and a vector."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = {key: nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for key, s in SHAPES.items()}
        matrices = [self.params[key] for key in ("tall", "wide", "square")]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": [self.params["table"]], "weight_decay": 0.1, "embedding": True},
            {"params": [self.params["vector"]], "weight_decay": 0.0},
        ]
        cls, options = VARIANTS[name]
        self.optimizer = cls(groups, lr=1e-2, **options)  # type: ignore[call-arg]  # every optimiser has lr

    def step(self, seed: int, *without: str) -> None:
        """One step with gradients of this seed, for some without."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.params.items():
            gradient = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            p.grad = None if name in without else gradient
        self.optimizer.step()

    def state(self, name: str) -> dict[str, Any]:
        """What is kept for a parameter."""
        found: dict[str, Any] = self.optimizer.state[self.params[name]]
        return found


def equal(one: Trial, other: Trial) -> bool:
    return all(torch.equal(p, other.params[name]) for name, p in one.params.items())


def test_all_that_is_registered_is_tried() -> None:
    assert {cls for cls, _ in VARIANTS.values()} == set(register_optimizers())


@every
@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_from_saved_state_ends_with_the_same_bits(name: str, at: int, device: str) -> None:
    whole, first = Trial(name, device=device), Trial(name, device=device)
    for seed in range(10):
        whole.step(seed)
        if seed < at:
            first.step(seed)
    resumed = Trial(name, device=device)
    with torch.no_grad():
        for key, p in resumed.params.items():
            p.copy_(first.params[key])
    resumed.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    for seed in range(at, 10):
        resumed.step(seed)
    assert equal(whole, resumed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["Adafactor", "GaLore", "Lion"])
def test_a_gpu_computes_what_a_cpu_does(name: str) -> None:
    """In float64; APOLLO's random numbers, Muon's bfloat16 and the signs of singular vectors are a device's own.

    Signs matter to GaLore from its first renewal on, as moments are carried over it.
    """
    here, there = Trial(name, torch.float64), Trial(name, torch.float64, "cuda")
    for seed in range(GAP):
        here.step(seed)
        there.step(seed)
    for key, p in here.params.items():
        torch.testing.assert_close(there.params[key].detach().cpu(), p.detach())


@every
def test_trial_steps_change_nothing_and_leave_nothing(name: str) -> None:
    """What the preflight does: gradients of zero at a rate of zero, then states are dropped."""
    plain, tried = Trial(name), Trial(name)
    groups = tried.optimizer.param_groups
    before = [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in groups]
    for _ in range(4):
        for group in groups:
            group["lr"] = 0.0
        for p in tried.params.values():
            p.grad = torch.zeros_like(p)
        tried.optimizer.step()
        for group, values in zip(groups, before, strict=True):
            group.update(values)
    assert equal(plain, tried)
    kept = {key: value.shape for key, value in tried.state("wide").items() if isinstance(value, Tensor)}
    tried.optimizer.state.clear()
    for seed in range(5):
        plain.step(seed)
        tried.step(seed)
    assert equal(plain, tried)
    assert kept == {key: v.shape for key, v in plain.state("wide").items() if isinstance(v, Tensor)}, "memory was measured"


@every
def test_what_has_no_gradient_stands_still(name: str) -> None:
    trial, start = Trial(name), Trial(name)
    for seed in range(3):
        trial.step(seed, "wide", "vector")
    for key, p in trial.params.items():
        assert torch.equal(p, start.params[key]) is (key in ("wide", "vector")), key
        assert bool(trial.state(key)) is (key not in ("wide", "vector")), key
    trial.step(3)
    assert not torch.equal(trial.params["wide"], start.params["wide"])


@every
def test_a_closure_is_run_with_gradients_and_its_loss_comes_back(name: str) -> None:
    trial, other = Trial(name), Trial(name)

    def closure() -> Tensor:
        trial.optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in trial.params.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss

    loss: Any = trial.optimizer.step(closure)  # type: ignore[arg-type]  # torch wants a float
    expected = sum(p.square().sum() for p in other.params.values())
    torch.testing.assert_close(loss, expected)
    for p in other.params.values():
        p.grad = 2 * p.detach()
    other.optimizer.step()
    assert equal(trial, other)


@every
def test_gradients_of_zero_make_no_nan_and_do_not_freeze_what_comes(name: str) -> None:
    """The first gradient of LoRA's A is zero throughout, and so is a row of a table that no text names."""
    trial, start = Trial(name), Trial(name)
    for seed in range(9):
        generator = torch.Generator().manual_seed(seed)
        for p in trial.params.values():
            gradient = torch.randn(p.shape, generator=generator)
            gradient[1] = 0
            if p.ndim == 2:
                gradient[:, 1] = 0
            p.grad = gradient * (0 if seed in (0, 4) else 1)
        trial.optimizer.step()
        assert all(p.isfinite().all() for p in trial.params.values())
    for key, p in trial.params.items():
        moved = (p.detach() - start.params[key].detach()).abs().mean()
        assert moved > 1e-3, f"{key} moved by {moved:.2g} in seven steps at a rate of 1e-2"


def test_galore_takes_its_directions_from_the_first_gradient_that_has_some() -> None:
    trial = Trial("GaLore")
    for p in trial.params.values():
        p.grad = torch.zeros_like(p)
    trial.optimizer.step()
    for seed in (1, 2, 3):
        trial.step(seed)
        if seed == 1:
            wide = trial.params["wide"].grad
            assert wide is not None
            u, _, _ = torch.linalg.svd(wide)
    assert torch.equal(trial.state("wide")["projector"], u[:, :1]), "three steps long, from the step that had a gradient"
    for p in trial.params.values():
        p.grad = torch.zeros_like(p)
    trial.optimizer.step()
    assert torch.equal(trial.state("wide")["projector"], u[:, :1]), "zeros have no better ones"
    trial.step(5)
    assert not torch.equal(trial.state("wide")["projector"], u[:, :1])


@every
def test_weights_in_bfloat16_have_their_state_in_bfloat16(name: str) -> None:
    whole, resumed = Trial(name, torch.bfloat16), Trial(name, torch.bfloat16)
    for seed in range(3):
        whole.step(seed)
        resumed.step(seed)
    resumed.optimizer.load_state_dict(copy.deepcopy(resumed.optimizer.state_dict()))
    for seed in range(3, 6):
        whole.step(seed)
        resumed.step(seed)
    assert equal(whole, resumed)
    for key, p in whole.params.items():
        assert p.isfinite().all()
        state = {k: v for k, v in whole.state(key).items() if isinstance(v, Tensor) and k != "step"}
        assert state
        assert {v.dtype for v in state.values()} == {torch.bfloat16}


def test_shapes_of_states() -> None:
    def shapes(trial: Trial, name: str) -> dict[str, tuple[int, ...]]:
        found = {k: v for k, v in trial.state(name).items() if isinstance(v, Tensor) and k != "step"}
        for tensor in found.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), "a view keeps all behind it"
        return {k: tuple(v.shape) for k, v in found.items()}

    for name in VARIANTS:
        trial = Trial(name)
        trial.step(0)
        for inner in ("tall", "wide", "square"):
            m, n = SHAPES[inner]
            small, large, rank = min(m, n), max(m, n), 1 if name == "APOLLO-Mini" else min(m, n) // 4
            low = (large, rank) if m >= n else (rank, large)
            expected: dict[str, dict[str, tuple[int, ...]]] = {
                "Adafactor": {"row_var": (m, 1), "col_var": (1, n)},
                "APOLLO": {"exp_avg": low, "exp_avg_sq": low, "norm": ()},
                "GaLore": {"exp_avg": low, "exp_avg_sq": low, "projector": (small, rank)},
                "Lion": {"exp_avg": (m, n)},
                "Muon": {"momentum_buffer": (m, n)},
            }
            assert shapes(trial, inner) == expected[name.partition("-")[0]]
        for outer in ("table", "vector"):
            adamw = {"exp_avg": SHAPES[outer], "exp_avg_sq": SHAPES[outer]}
            if name not in ("Adafactor", "Lion"):
                assert shapes(trial, outer) == adamw


def kept(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> float:
    """Bytes of state per number of a weight."""
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    state = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    return sum(v.numel() * v.element_size() for v in state) / weight.numel()


@pytest.mark.parametrize("name", [*VARIANTS, "AdamW"])
def test_the_readme_says_how_much_is_kept(name: str) -> None:
    row = re.search(rf"^\| {name} \|.*\| ([\d.]+) \|$", README.read_text(), re.MULTILINE)
    assert row, f"README.md has no figure for {name}"
    cls, options = VARIANTS.get(name, (torch.optim.AdamW, {}))
    weight = nn.Parameter(torch.zeros(512, 512))
    found = kept(cls([weight], lr=1e-3, **options), weight)  # type: ignore[call-arg]  # every optimiser has lr
    assert row[1] == f"{found:.2g}"


def test_adafactor_adapts_where_gradients_are_as_small_as_those_of_language_models() -> None:
    """Steps do not depend on the size of gradients. The reason for our constant: with torch's they do, from 1e-5 on."""

    def moved(factor: float, **options: Any) -> Tensor:
        weight = nn.Parameter(torch.ones(8, 64))
        rows = torch.logspace(-2, 0, 8)[:, None]
        weight.grad = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * rows * factor
        optimizer: Any = Adafactor([weight], lr=1e-2, **options)
        optimizer.step()
        return weight.detach() - 1

    for factor in (1e-3, 1e-5, 1e-7):
        torch.testing.assert_close(moved(factor), moved(1.0), rtol=1e-3, atol=1e-6)
    theirs = moved(1e-5, eps=(torch.finfo(torch.float32).eps, 1e-3))
    assert (theirs - moved(1.0)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Lion, {"lr": -1.0}, "a learning rate of at least 0, got -1.0"),
        (Lion, {"betas": (0.9, 1.0)}, r"two betas in \[0, 1\), got \(0.9, 1.0\)"),
        (Lion, {"betas": (0.9,)}, "two betas"),
        (Lion, {"weight_decay": -0.1}, "weight_decay of at least 0"),
        (Lion, {"lr": float("nan")}, "a learning rate of at least 0, got nan"),
        (Adafactor, {"beta2_decay": 0.8}, "beta2_decay"),
        (Adafactor, {"d": 0.5}, "d should be >= 1"),
        (Adafactor, {"eps": (1e-30, 1e-3)}, "the first of eps to be at least 1.1e-19 for weights of torch.float32, got 1e-30"),
        (GaLore, {"rank": 0}, "rank of at least 1, got 0"),
        (GaLore, {"rank": 8}, "a rank below the smaller side of some matrix, of which the largest is 8 x 8, got 8"),
        (GaLore, {"update_proj_gap": 0}, "update_proj_gap of at least 1"),
        (GaLore, {"scale": 0.0}, "scale above 0"),
        (GaLore, {"proj_type": "full"}, "proj_type std, reverse_std, left, right, got full"),
        (GaLore, {"eps": 0.0}, "eps above 0"),
        (GaLore, {"betas": (-0.1, 0.9)}, "two betas"),
        (APOLLO, {"rank": -1}, "rank of at least 1"),
        (APOLLO, {"update_proj_gap": -5}, "update_proj_gap"),
        (APOLLO, {"scale": -1.0}, "scale above 0"),
        (APOLLO, {"scale_type": "row"}, "scale_type channel or tensor, got row"),
        (APOLLO, {"norm_growth": 0.9}, "norm_growth of at least 1"),
        (APOLLO, {"seed": -1}, "seed of at least 0"),
        (APOLLO, {"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_values_out_of_range_are_refused(cls: Any, options: dict[str, Any], message: str) -> None:
    weight = nn.Parameter(torch.ones(8, 8))
    with pytest.raises(ValueError, match=message):
        cls([weight], **options)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("cls", [Adafactor, GaLore, APOLLO])
def test_sharded_weights_are_refused_where_a_rule_needs_whole_ones(cls: Any) -> None:
    mesh = init_device_mesh("cpu", (1,))
    weight = nn.Parameter(DTensor.from_local(torch.ones(8, 8), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match="whole on every rank, as with --strategy ddp, got sharded ones"):
        cls([weight])


@pytest.mark.usefixtures("one_rank")
def test_lion_takes_sharded_weights_as_whole_ones() -> None:
    mesh = init_device_mesh("cpu", (1,))
    whole, sharded = nn.Parameter(torch.ones(8, 8)), DTensor.from_local(torch.ones(8, 8), mesh, [Shard(0)])
    optimizers = Lion([whole], 1e-2), Lion([sharded], 1e-2)
    for seed in range(3):
        gradient = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
        whole.grad, sharded.grad = gradient, DTensor.from_local(gradient, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(sharded.full_tensor(), whole)
