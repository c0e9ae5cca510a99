from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_methods.lora import LoRA

from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from lightning_ft.registry import registry
from lightning_ft.run.choices import choose
from lightning_ft.run.strategies import check_strategy
from lightning_ft.testing import check_method
from lightning_ft.testing.methods import inputs, plain_loss
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

SEEN = sorted(set(inputs().flatten().tolist()))[:5]
"""Tokens that the contract's batch has, so that their rows get a gradient."""


def test_contract() -> None:
    check_method(LoRA(trainable_tokens=SEEN))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_named_rows_move_and_a_head_of_its_own_has_them_too(family: Family) -> None:
    method = LoRA(trainable_tokens=list(SEEN))
    model: Any = method.attach(tiny_model(family), 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        plain_loss(model, inputs()).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    merged: Any = method.merge(model)
    base: Any = tiny_model(family)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        rows = (getattr(merged, name)().weight != getattr(base, name)().weight).any(1).nonzero()[:, 0].tolist()
        assert rows == SEEN
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == (family == "gpt2")


def test_whole_matrices_train_the_rows_of_new_tokens() -> None:
    for names in (["embed_tokens", "lm_head"], ["transformer.wte", "lm_head"]):
        method = LoRA(modules_to_save=names)
        assert method.training_tokens([260]) is method
    assert LoRA(modules_to_save=["norm"]).training_tokens([260]).trainable_tokens == [260]


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp2_tp"])
def test_rows_beside_a_matrix_in_parts_are_refused(strategy: str) -> None:
    config = TrainingConfig.from_dict({"model": "m", "data": ["d"], "strategy": strategy, "method": LoRA(trainable_tokens=[5])})
    with pytest.raises(UsageError, match=rf"rows beside a matrix that lies in parts cannot train; got {strategy}"):
        check_strategy(config, choose(config, registry()))


def test_tokens_may_be_named_as_the_tokenizer_writes_them(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_backbone_folder(tmp_path))
    adapted: Any = LoRA(trainable_tokens=["<|start|>", 40]).attach(model, 1)
    assert adapted.peft_config["default"].trainable_token_indices == {"embed_tokens": [258, 40], "lm_head": [258, 40]}
    cases: tuple[tuple[int | str, str], ...] = (("<tool>", "got '<tool>'"), (260, "got 260"), (-1, "got -1"))
    for token, said in cases:
        with pytest.raises(UsageError, match=said):
            LoRA(trainable_tokens=[token]).attach(AutoModelForCausalLM.from_pretrained(tmp_path), 1)
    with pytest.raises(UsageError, match="a token once; got 40 again"):
        LoRA(trainable_tokens=[40, 40]).attach(AutoModelForCausalLM.from_pretrained(tmp_path), 1)
