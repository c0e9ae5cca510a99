from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_methods.freeze import layers_for
from lightning_ft_methods.lisa import LISA
from safetensors.torch import load_file

import lightning_ft
from lightning_ft.errors import UsageError
from lightning_ft.run.state import load_state
from lightning_ft.testing.models import tiny_backbone_folder, tiny_llama
from lightning_ft.testing.runs import stopped_at

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {
    "max_steps": 8, "eval_every": 3, "batch_size": 4, "precision": "fp32", "verdict_rows": 0, "keep_best": 5, "log_every": 1,
}  # fmt: skip
TURNS = LISA(active_layers=1, interval=2, layer_seed=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"instruction": f"Count to {n}.", "output": "1 2 3"[: n % 5 + 1]}) + "\n" for n in range(40))
    )
    return path


def weights(run: Path, name: str = "final_model") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def test_every_layer_is_drawn_equally_often() -> None:
    turns = [LISA(active_layers=2, interval=5).drawn(6, 5 * turn) for turn in range(3000)]
    assert all(len(turn) == 2 for turn in turns)
    counts = [sum(layer in turn for turn in turns) for layer in range(6)]
    assert max(abs(count - 1000) for count in counts) < 4 * (3000 * 1 / 3 * 2 / 3) ** 0.5  # four standard deviations


def test_a_turn_lasts_its_interval_and_the_seed_decides() -> None:
    method = LISA(active_layers=1, interval=4)
    turns = [method.drawn(8, step) for step in range(40)]
    assert all(len(set(turns[i : i + 4])) == 1 for i in range(0, 40, 4))
    assert len(set(turns)) > 3
    assert turns != [LISA(active_layers=1, interval=4, layer_seed=5).drawn(8, step) for step in range(40)]


def test_only_what_is_active_trains_and_the_state_of_a_layer_goes_with_its_turn() -> None:
    model = TURNS.attach(tiny_llama(), 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    layers = layers_for(model, "lisa")
    for step in range(8):
        for resting in TURNS.before_step(model, step):
            optimizer.state.pop(resting, None)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        model(input_ids=torch.arange(32, 64)[None], use_cache=False).logits.square().mean().backward()
        optimizer.step()
        (active,) = TURNS.drawn(2, step)
        for name, p in model.named_parameters():
            inactive = f".layers.{1 - active}." in name
            assert torch.equal(p, before[name]) == inactive, name
            assert (p in optimizer.state) != inactive, name
            assert (p.grad is None) == inactive, name
    assert layers[0] is not layers[1]


def test_a_run_goes_on_in_the_middle_of_a_turn_with_the_same_bits(rows: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "model": str(tiny_backbone_folder(tmp_path / "model")), "data": rows, "method": TURNS}
    run = lightning_ft.fit(output=str(tmp_path / "run"), **options)
    for first, last in ((0, 3), (3, 6)):
        drawn = set().union(*(TURNS.drawn(2, step) for step in range(first, last)))
        before = weights(tmp_path / "model", "") if not first else weights(run.folder, f"checkpoints/checkpoint-step-{first}")
        after = weights(run.folder, f"checkpoints/checkpoint-step-{last}")
        moved = {
            layer for layer in (0, 1) if any(not torch.equal(before[n], after[n]) for n in after if f".layers.{layer}." in n)
        }
        assert moved == drawn
        states = load_state(run.folder / f"checkpoints/checkpoint-step-{last}")["optimizer_states"][0]["state"]
        (active,) = TURNS.drawn(2, last - 1)
        assert len(states) == len([name for name in after if f".layers.{1 - active}." not in name]), "resting layers have none"
    other = tmp_path / "copy"
    resume = str(stopped_at(run.folder, other, 3))
    lightning_ft.fit(output=str(tmp_path / "run"), resume=resume, **options)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(run.folder).items())


def test_two_ranks_train_what_one_trains(rows: Path, tmp_path: Path) -> None:
    model = str(tiny_backbone_folder(tmp_path / "model"))
    losses = []
    for ranks, batch in ((1, 4), (2, 2)):
        words = [
            sys.executable, "-m", "lightning_ft", "fit", "--model", model, "--data", str(rows), "--devices", str(ranks),
            "--output", str(tmp_path / str(ranks)), "--batch_size", str(batch), "--method", "lisa",
            "--method.active_layers", "1", "--method.interval", "2", "--method.layer_seed", "1",
            "--max_steps", "8", "--precision", "fp32",
            "--verdict_rows", "0", "--log_every", "1", "--learning_rate", "1e-3",
        ]  # fmt: skip
        subprocess.run(words, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = map(json.loads, (tmp_path / str(ranks) / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"active_layers": 0}, "Expected --method.active_layers to be a whole number of at least 1; got 0."),
        ({"interval": 0}, "Expected --method.interval to be a whole number of at least 1; got 0."),
        ({"layer_seed": -1}, "Expected --method.layer_seed to be a whole number of at least 0; got -1."),
        ({"active_layers": 3}, "Expected --method.active_layers of at most 2, the model's layers; got 3."),
    ],
)
def test_wrong_options(options: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        LISA(**options).attach(tiny_llama(), 1)
    assert str(caught.value) == said


def test_the_preflight_tries_a_step_of_the_first_turn(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every layer active it would foretell the memory of full fine-tuning."""
    seen: list[tuple[int, int]] = []
    before = LISA.before_step

    def watched(self: LISA, model: Any, step: int) -> Any:
        resting = before(self, model, step)
        seen.append((step, sum(not p.requires_grad for p in model.parameters())))
        return resting

    monkeypatch.setattr(LISA, "before_step", watched)
    options = {**OPTIONS, "max_steps": 1, "model": str(tiny_backbone_folder(tmp_path / "model")), "data": rows, "method": TURNS}
    lightning_ft.fit(output=str(tmp_path / "run"), **options)
    assert len(seen) > 1
    assert {step for step, _ in seen} == {0}
    assert all(frozen for _, frozen in seen)
