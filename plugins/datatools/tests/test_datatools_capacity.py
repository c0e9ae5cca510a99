"""The advice that follows from a model's shapes, against peft's own count of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft_datatools.advice import advice
from lightning_ft_datatools.capacity import Capacity, capacity_of

if TYPE_CHECKING:
    from pathlib import Path

from lightning_ft.loading import embedded_folder


def test_the_parameters_of_a_rank_are_those_that_peft_makes() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = capacity_of(embedded_folder())
    assert found is not None
    model = AutoModelForCausalLM.from_pretrained(embedded_folder())
    assert found.parameters == sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert 8 * found.per_rank == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_advice() -> None:
    model = Capacity(parameters=1_000_000, per_rank=1000)
    assert model.rank_for(1) == 8
    assert model.rank_for(16_000) == 8, "8,000 parameters, 2 bits each"
    assert model.rank_for(16_001) == 16
    assert model.rank_for(600_000) is None
    fits, room = model.advice(100, 20_000)
    assert fits.startswith("20,000 tokens with a loss fit into LoRA of rank 16 on this model (16,000 parameters, about 2 bits")
    limits = "LoRA rank 8 about 80, rank 16 about 160, rank 64 about 640; full training about 10,000"
    assert room == f"Rows like these that have room: {limits}."
    assert model.advice(100, 600_000)[0].startswith("600,000 tokens with a loss are more than LoRA of rank 256 has room for")
    assert model.advice(0, 0) == []


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert capacity_of(tmp_path) is None


def test_no_length_is_advised_that_the_model_has_not() -> None:
    known = {"max_length": 512, "supervised": 900, "cut_supervised": 90, "percentiles": {"p99": 1500}}
    assert advice(60, known | {"positions": 2048}, [])[-1].endswith("; 1500 would keep 99 % of the rows whole.")
    assert advice(60, known | {"positions": 1024}, [])[-1].endswith(
        "; 99 % of the rows have up to 1500, and the model has places for 1024."
    )
