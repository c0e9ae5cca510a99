"""Checkpoint folders: how they are called, which is the newest whole one, and the trained weights in them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import broken
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from torch import nn

    from lightning_ft.method import Method

NAME = re.compile(r"checkpoint-step-(\d+)")


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimiser steps lies."""
    return run / "checkpoints" / f"checkpoint-step-{step}"


def step_of(folder: Path) -> int:
    """The number of optimiser steps that a checkpoint folder's name says."""
    found = NAME.fullmatch(folder.name)
    if found is None:
        raise UsageError(f"Expected a checkpoint folder named checkpoint-step-<n>, got '{folder.name}'.")
    return int(found[1])


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, newest first, whole or not."""
    found = [p for p in (run / "checkpoints").glob("checkpoint-step-*") if NAME.fullmatch(p.name)]
    return sorted(found, key=step_of, reverse=True)


def newest(run: Path, *, last: int | None = None, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest whole checkpoint (of step `last` or before); each broken one that is passed over is said with its reason."""
    for folder in checkpoints(run):
        if last is not None and step_of(folder) > last:
            continue
        reason = broken(folder)
        if reason is None:
            return folder
        if say:
            say(f"{folder.name} is broken ({reason}); going back to the one before it.")
    return None


def load_trained(model: nn.Module, method: Method, folder: Path) -> None:
    """Put the trained weights of a checkpoint folder back into an attached model, bit for bit."""
    from safetensors.torch import load_file

    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        method.load_trainable_state(model, load_file(adapter))
        return
    from transformers import AutoModelForCausalLM

    # Through from_pretrained rather than the file: transformers renames and fuses some families' weights on the way.
    stored = AutoModelForCausalLM.from_pretrained(str(folder), dtype=next(model.parameters()).dtype).state_dict()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    method.load_trainable_state(model, {name: stored[name] for name in trained})


def check_same_adapter(model: nn.Module, folder: Path, schedule: Collection[str] = ()) -> None:
    """Refuse to train an adapter on under other numbers (rank, scaling ...): it would be another model from step 0 on.

    Args:
        model: With the adapter that is to be trained on.
        folder: Where it was saved.
        schedule: Numbers that may differ.

    Raises:
        UsageError: the first number in which the adapter's config and the attached method differ, or another adapter lies
            beneath.
    """
    configs: Any = getattr(model, "peft_config", None)
    path = folder / "adapter_config.json"
    if configs is None or not path.is_file():
        return
    beneath = sorted(config.parent.name for config in folder.glob("*/adapter_config.json"))
    if beneath != sorted(configs)[: len(configs) - 1]:
        there = f"the adapter beneath it; type --method.{beneath[0]} {folder / beneath[0]}" if beneath else "none beneath it"
        raise UsageError(f"Expected to go on training the adapter '{folder}' with {there}.")
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name, now in next(iter(configs.values())).to_dict().items():
        before = stored.get(name, now)
        ignored = "dropout" in name or name == "inference_mode" or name in schedule
        if isinstance(now, (int, float)) and isinstance(before, (int, float)) and now != before and not ignored:
            raise UsageError(
                f"Expected the method of adapter '{folder}' to go on training it, but {name} is {before} there and {now} here; "
                "give --method the options that the adapter was trained with."
            )
