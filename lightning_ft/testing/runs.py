"""Runs that stopped in the middle, made of finished ones."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.checkpoint import checkpoints, path_of, step_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lightning_ft.api import Run


def stopped_at(run: Path, copy: Path, step: int) -> Path:
    """Copy a finished run as it would be had it stopped after `step`, and return the checkpoint to resume from.

    What the resumed run leaves in `copy` can be compared with `run`, bit for bit.
    """
    shutil.copytree(run, copy)
    later = [folder for folder in checkpoints(copy) if step_of(folder) > step]
    for folder in (*later, copy / layout.FINAL, copy / layout.BEST):
        shutil.rmtree(folder)
    record = json.loads((copy / layout.RECORD).read_text(encoding="utf-8"))
    (copy / layout.RECORD).write_text(json.dumps(record | {"status": "interrupted"}), encoding="utf-8")
    return path_of(copy, step)


def check_resume(folder: Path, step: int, **options: Any) -> Run:
    """Train, and again from the checkpoint of `step` on: the same losses and the same saved model, bit for bit.

    Args:
        folder: where both runs go; `run` below it is the whole one.
        step: one at which `options` save, before the last.
        options: for `fit`, without `output`.

    Returns:
        The whole run.

    Raises:
        AssertionError: something differs.
    """
    import torch

    from lightning_ft import fit

    run = fit(**options, output=str(folder / "run"))
    copy = folder / "gone_on"
    resume = str(stopped_at(run.folder, copy, step))
    fit(**options, output=str(folder / "run"), resume=resume)
    mine, theirs = saved_weights(run.folder / layout.FINAL), saved_weights(copy / layout.FINAL)
    assert mine.keys() == theirs.keys(), sorted(mine.keys() ^ theirs.keys())
    odd = [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])]
    assert not odd, f"another value after going on from step {step}: {odd[:3]}"
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    lines = map(json.loads, (copy / layout.LOG).read_text(encoding="utf-8").splitlines())
    again = [line["loss"] for line in lines if "loss" in line]
    assert again == losses, f"losses {losses}, and {again} after going on from step {step}"
    return run


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """The adapter's or the model's tensors in a saved folder."""
    from safetensors.torch import load_file

    names = ("adapter_model.safetensors", "model.safetensors")
    return load_file(next(folder / name for name in names if (folder / name).is_file()))
