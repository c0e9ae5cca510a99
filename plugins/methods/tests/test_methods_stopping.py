"""A run that is stopped between two validations goes on to the bits of one that was not, whatever its method does by steps."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import pytest
import torch

import lightning_ft
from lightning_ft.errors import RunInterruptedError
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import saved_weights

if TYPE_CHECKING:
    from pathlib import Path

BY_STEPS: dict[str, dict[str, Any]] = {
    "adalora": {"every": 1, "warmup": 0.1, "settle": 0.1}, "lisa": {"interval": 2, "active_layers": 1}, "lora": {},
}  # fmt: skip


class Stop(L.Callback):
    """A signal comes in the fifth step."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("method", BY_STEPS)
def test_goes_on_between_validations(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Where is order {n}?", "output": f"In city {n % 7}."} for n in range(60)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    given: dict[str, Any] = {
        "model": str(tiny_backbone_folder(tmp_path / "model")), "data": str(rows),
        "method": {"name": method, **BY_STEPS[method]}, "precision": "fp32", "batch_size": 4, "max_steps": 10,
        "eval_every": 100, "learning_rate": 0.01, "verdict_rows": 0, "preflight": False, "log_every": 1,
    }  # fmt: skip
    whole = lightning_ft.fit(**given, output=str(tmp_path / "whole"))
    cut = tmp_path / "cut"
    with pytest.raises(RunInterruptedError, match="after step 5 of 10"):
        lightning_ft.fit(**given, output=str(cut), trainer={"callbacks": [Stop()]})
    lightning_ft.fit(**given, output=str(cut), resume=str(cut), trainer={"callbacks": [Stop()]})
    mine, theirs = (saved_weights(folder / "final_model") for folder in (whole.folder, cut))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
