"""Runs that stopped in the middle, made of finished ones."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from lightning_ft.checkpoint import checkpoints, path_of, step_of

if TYPE_CHECKING:
    from pathlib import Path


def stopped_at(run: Path, copy: Path, step: int) -> Path:
    """Copy a finished run as it would be had it stopped after `step`, and return the checkpoint to resume from.

    What the resumed run leaves in `copy` can be compared with `run`, bit for bit.
    """
    shutil.copytree(run, copy)
    later = [folder for folder in checkpoints(copy) if step_of(folder) > step]
    for folder in (*later, copy / "final_model", copy / "best_model"):
        shutil.rmtree(folder)
    record = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    (copy / "run.json").write_text(json.dumps(record | {"status": "interrupted"}), encoding="utf-8")
    return path_of(copy, step)
