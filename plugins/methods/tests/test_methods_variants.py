"""Every variant of a method in real runs: going on from the middle, and loading without us."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_methods.freeze import Freeze
from lightning_ft_methods.lora import LoRA
from lightning_ft_methods.prompts import PromptTuning, PTuning

from lightning_ft.testing.methods import inputs, logits
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import check_resume

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.method import Method
    from lightning_ft.testing.stranger import Stranger

pytestmark = pytest.mark.usefixtures("module_cache")
VARIANTS: list[Method] = [
    LoRA(use_rslora=True, dropout=0.1),
    LoRA(use_dora=True),
    LoRA(init="gaussian"),
    LoRA(init="orthogonal"),
    LoRA(init="pissa"),
    LoRA(init="olora"),
    LoRA(plus_ratio=16.0),
    LoRA(modules_to_save=["lm_head"]),
    LoRA(trainable_tokens=[65, 66]),
    Freeze(train_modules=["mlp"]),
    PromptTuning(init="random"),
    PromptTuning(init="text", init_text="Count:"),
    PTuning(encoder="lstm", dropout=0.1),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("variants")
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n % 9 + 1)))} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_backbone_folder(folder / "model")), "data": folder / "rows.jsonl", "max_steps": 4, "eval_every": 2,
        "batch_size": 4, "precision": "fp32", "verdict_rows": 0, "preflight": False, "keep_best": 5, "log_every": 1,
    }  # fmt: skip


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_a_variant_goes_on_from_its_middle_and_loads_without_us(
    method: Method, given: dict[str, Any], stranger: Stranger, tmp_path: Path
) -> None:
    run = check_resume(tmp_path, 2, method=method, **given)
    assert run._loaded is not None
    found = stranger.logits(run.folder / "final_model", inputs())
    torch.testing.assert_close(found[:, -inputs().shape[1] :], logits(run._loaded.model))
