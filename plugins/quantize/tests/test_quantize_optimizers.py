from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import lightning_ft
from lightning_ft.registry import registry
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import stopped_at

if TYPE_CHECKING:
    from pathlib import Path

EIGHT_BIT = ("AdamW8bit", "Lion8bit")
PAGED = ("PagedAdamW", "PagedAdamW8bit")


def made(name: str, values: torch.Tensor, **options: Any) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(values.clone())
    return weight, registry().optimizers[name].cls([weight], lr=1e-3, **options)


def descend(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)) + 1
        optimizer.step()


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_the_state_of_a_large_parameter_takes_a_byte_and_a_scale_per_256(name: str) -> None:
    weight, optimizer = made(name, torch.ones(128, 64))
    descend(weight, optimizer, 1)
    state = optimizer.state[weight]
    moments = 2 if name.startswith("Adam") else 1
    own = [v for k, v in state.items() if k.startswith(("state", "absmax"))]
    assert sum(v.numel() * v.element_size() for v in own) == moments * weight.numel() * (1 + 4 / 256)


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_small_parameters_keep_32_bits(name: str) -> None:
    weight, optimizer = made(name, torch.ones(10, 10))
    descend(weight, optimizer, 1)
    assert optimizer.state[weight]["state1"].dtype == torch.float32


def test_adamw_in_8_bits_goes_where_adamw_goes() -> None:
    start = torch.randn(128, 64, generator=torch.Generator().manual_seed(9))
    mine, optimizer = made("AdamW8bit", start, weight_decay=0.1)
    other = torch.nn.Parameter(start.clone())
    descend(mine, optimizer, 20)
    descend(other, torch.optim.AdamW([other], lr=1e-3, weight_decay=0.1), 20)
    way, apart = (other - start).norm(), (mine - other).norm()
    assert apart < 0.05 * way


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_a_saved_state_goes_on_with_the_same_bits(name: str) -> None:
    weight, optimizer = made(name, torch.ones(128, 64))
    descend(weight, optimizer, 3)
    twin, resumed = made(name, weight.detach())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(weight, optimizer, 3, first=3)
    descend(twin, resumed, 3, first=3)
    assert torch.equal(weight, twin)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to move pages from")
@pytest.mark.parametrize("name", PAGED)
def test_pages_are_refused_without_a_gpu(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected a CUDA GPU for {name}, found none; type --optimizer AdamW"):
        made(name, torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="paged state needs a CUDA GPU")
@pytest.mark.parametrize("name", PAGED)
def test_paged_state_goes_where_adamw_goes(name: str) -> None:
    start = torch.randn(512, 512, device="cuda")
    weight = torch.nn.Parameter(start.clone())
    optimizer = registry().optimizers[name].cls([weight], lr=1e-3)
    other = torch.nn.Parameter(start.clone())
    plain = torch.optim.AdamW([other], lr=1e-3, weight_decay=0.0)
    for _ in range(5):
        weight.grad = torch.randn_like(weight)
        other.grad = weight.grad.clone()
        optimizer.step()
        plain.step()
    assert (weight - other).norm() < 0.05 * (other - start).norm()


def test_options_are_documented_and_checked(tmp_path: Path) -> None:
    from lightning_ft.cli import main
    from lightning_ft.cli.options import options_of

    for name in (*EIGHT_BIT, *PAGED):
        assert all(option.help for option in options_of(registry().optimizers[name].cls).values())
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 20)
    model = str(tiny_backbone_folder(tmp_path / "model"))
    common = ["fit", "--model", model, "--data", str(rows), "--output", str(tmp_path / "run")]
    assert main([*common, "--optimizer", "adamw8bit", "--optimizer.betas", "[2.0, 0.9]"]) == 2
    assert main([*common, "--optimizer", "adamw8bit", "--optimizer.beta", "[0.9, 0.9]"]) == 2


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_a_run_that_goes_on_from_its_middle_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": str(n)}) + "\n" for n in range(40)))
    options: dict[str, Any] = {
        "model": str(tiny_backbone_folder(tmp_path / "model")), "data": rows, "method": "full", "max_steps": 8, "eval_every": 4,
        "batch_size": 4, "verdict_rows": 0, "keep_best": 5, "precision": "fp32", "output": str(tmp_path / "run"),
        "optimizer": {"name": name, "min_8bit_size": 1024},
    }  # fmt: skip
    run = lightning_ft.fit(**options)
    other = tmp_path / "copy"
    resume = str(stopped_at(run.folder, other, 4))
    lightning_ft.fit(**options, resume=resume)
    mine, theirs = (load_file(folder / "final_model" / "model.safetensors") for folder in (run.folder, other))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
