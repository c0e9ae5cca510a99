from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lightning_ft
from lightning_ft.errors import UsageError
from lightning_ft.master import MasterWeights, joined, split
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import stopped_at

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {
    "method": "full", "precision": "bf16", "max_steps": 8, "save_every": 4, "eval_every": 4, "keep_best": 9, "log_every": 1,
    "batch_size": 4, "learning_rate": 1e-3, "verdict_rows": 0, "preflight": False, "seed": 3,
}  # fmt: skip


def numbers() -> Tensor:
    """Of all sizes, with those in the middle between two bfloat16 numbers and the ends of the range."""
    draw = torch.Generator().manual_seed(0)
    many = torch.randn(20_000, generator=draw) * torch.logspace(-44, 38, 20_000)
    odd = torch.tensor([0.0, -0.0, 1.00390625, -1.00390625, 1.01171875, torch.finfo(torch.float32).max, float("inf"), 1e-45])
    return torch.cat([many, odd])


def test_halves_are_the_number_and_the_upper_one_is_the_nearest() -> None:
    x = numbers()
    upper, lower = split(x)
    assert (upper.dtype, lower.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(joined(upper, lower).view(torch.int32), x.view(torch.int32))
    finite = upper.isfinite() & x.isfinite()
    assert bool(((upper.float() - x).abs() <= (x.bfloat16().float() - x).abs())[finite].all())


def parameters(seed: int, dtype: torch.dtype) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((24, 16), (16, 24), (40,))
    found = [nn.Parameter(torch.randn(shape, generator=draw).bfloat16().to(dtype)) for shape in shapes]
    return [*found, nn.Parameter(torch.randn(7, generator=draw))]  # float32 among them


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "weight_decay": 0.0}]


@pytest.mark.parametrize("name", [name for name in registry().optimizers if not name.lower().endswith("8bit")])
def test_it_is_the_optimiser_of_float32_weights(name: str) -> None:
    cls: Any = registry().optimizers[name].cls
    if "paged" in name.lower():
        pytest.skip("needs a GPU")

    def make(of: list[dict[str, Any]]) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = cls(of, lr=1e-3)
        return found

    narrow, wide = parameters(0, torch.bfloat16), parameters(0, torch.float32)
    ours, theirs = MasterWeights(make, groups(narrow)), make(groups(wide))
    schedule = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)) for o in (ours, theirs)]
    draw = torch.Generator().manual_seed(1)
    for step in range(6):
        for a, b in zip(narrow, wide, strict=True):
            grad = torch.randn(a.shape, generator=draw).to(a.dtype)
            a.grad, b.grad = (None, None) if step == 2 and a.ndim == 1 else (grad, grad.float())
        ours.step()
        theirs.step()
        for each in schedule:
            each.step()
        if step == 3:
            kept = ours.state_dict()
            ours = MasterWeights(make, groups(narrow))
            ours.load_state_dict(kept)
            schedule[0].optimizer = ours
    for a, b in zip(narrow, wide, strict=True):
        exact = joined(a.detach(), ours.lower[a]) if a.dtype == torch.bfloat16 else a.detach()
        assert torch.equal(exact, b.detach())


@pytest.mark.parametrize("name", ["GaLore", "APOLLO", "Muon"])
def test_groups_that_the_optimiser_makes_itself_keep_their_options(name: str) -> None:
    """A rank of 10 is below both sides of some matrices only: of each given group some go into one, some into another."""
    options: dict[str, Any] = {} if name == "Muon" else {"rank": 10}
    cls: Any = registry().optimizers[name].cls

    def make(of: list[dict[str, Any]]) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = cls(of, lr=1e-3, **options)
        return found

    def two(params: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": params[:3], "weight_decay": 0.1}, {"params": params[3:], "weight_decay": 0.0}]

    draw = torch.Generator().manual_seed(0)
    shapes = ((24, 16), (8, 24), (40,), (12, 48))
    values = [torch.randn(shape, generator=draw).bfloat16() for shape in shapes]
    grads = [torch.randn(shape, generator=draw).bfloat16() for shape in shapes]
    narrow, wide = [nn.Parameter(v) for v in values], [nn.Parameter(v.float()) for v in values]
    ours, theirs = MasterWeights(make, two(narrow)), make(two(wide))
    for _ in range(3):
        for a, b, grad in zip(narrow, wide, grads, strict=True):
            a.grad, b.grad = grad.clone(), grad.float()
        ours.step()
        theirs.step()
    assert all(torch.equal(joined(a.detach(), ours.lower[a]), b.detach()) for a, b in zip(narrow, wide, strict=True))


def test_updates_too_small_for_16_bits_add_up() -> None:
    params = [nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2)]
    ours, plain = (
        MasterWeights(lambda g: torch.optim.SGD(g, lr=1e-4), [{"params": params[:1]}]),
        torch.optim.SGD(params[1:], 1e-4),
    )
    for _ in range(400):
        for p in params:
            p.grad = torch.ones_like(p)
        ours.step()
        plain.step()
    assert params[0].tolist() == pytest.approx([0.96] * 4, abs=4e-3)
    assert params[1].tolist() == [1.0] * 4


def test_a_step_that_a_gpu_would_skip_changes_nothing() -> None:
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    ours: Any = MasterWeights(lambda g: torch.optim.AdamW(g, lr=1e-2, fused=True), [{"params": [p]}])
    assert ours._step_supports_amp_scaling
    for bad in (0.0, 1.0):
        p.grad = torch.full_like(p, float("nan") if bad else 1.0)
        ours.found_inf = torch.tensor(bad)
        ours.step()
        if not bad:
            before = (p.detach().clone(), ours.lower[p].clone(), ours.state[p]["exp_avg"].clone())
    after = (p.detach(), ours.lower[p], ours.state[p]["exp_avg"])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("master")
    rows = [{"instruction": f"Where is order {n}?", "output": f"In city {n % 7}" + "!" * (n % 9)} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tiny_backbone_folder(folder / "model")), str(folder / "rows.jsonl")


def losses(metrics: Any) -> list[float]:
    return [line["loss"] for line in metrics if "loss" in line]


def test_a_run_follows_float32_weights_and_is_resumed_bit_for_bit(files: tuple[str, str], tmp_path: Path) -> None:
    model, data = files
    given = {"model": model, "data": data, **OPTIONS}
    wide = lightning_ft.fit(output=str(tmp_path / "wide"), **given)
    run = lightning_ft.fit(output=str(tmp_path / "run"), master_weights="split", **given)
    assert losses(run.metrics) == pytest.approx(losses(wide.metrics), rel=0.02)
    assert losses(run.metrics)[-1] < losses(run.metrics)[0]
    weights = load_file(tmp_path / "run" / "final_model" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    other = tmp_path / "copy"
    resume = str(stopped_at(run.folder, other, 4))
    lightning_ft.fit(output=str(tmp_path / "run"), master_weights="split", resume=resume, **given)
    again = load_file(other / "final_model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("changed", [{"precision": "fp32"}, {"method": "lora"}])
def test_master_weights_that_nothing_reads_are_refused(files: tuple[str, str], tmp_path: Path, changed: dict[str, str]) -> None:
    model, data = files
    with pytest.raises(UsageError, match="leave --master_weights out"):
        lightning_ft.fit(
            model=model, data=data, output=str(tmp_path / "run"), **{**OPTIONS, "master_weights": "split", **changed}
        )
    assert not (tmp_path / "run").exists()
