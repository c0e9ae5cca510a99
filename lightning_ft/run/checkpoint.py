"""Checkpoints: folders that any Hugging Face user can load, with what a resume needs beside the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lightning_ft.atomic import broken, whole_folder
from lightning_ft.errors import UsageError
from lightning_ft.run.state import load_state, save_state

if TYPE_CHECKING:
    from collections.abc import Callable

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


class FolderCheckpoint(CheckpointIO):
    """Writes Lightning's checkpoint dictionary as a folder: the model in its own format, the rest as plain state.

    Args:
        write_model: Writes model, tokenizer, template and card into a folder.
    """

    def __init__(self, write_model: Callable[[Path], None]) -> None:
        self.write_model = write_model

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the folder atomically."""
        with whole_folder(Path(path)) as folder:
            self.write_model(folder)
            save_state(checkpoint, folder)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The dictionary again, and the folder under `folder`, from which the module reads its weights.

        Raises:
            UsageError: the folder is not whole.
        """
        reason = broken(Path(path))
        if reason is not None:
            raise UsageError(f"Expected a whole checkpoint in '{path}', but {reason}; name another one with --resume.")
        state: dict[str, Any] = load_state(Path(path))
        return {**state, "folder": Path(path)}

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the folder; the rename first makes sure that half a folder is never taken for a checkpoint."""
        import shutil

        folder = Path(path)
        if folder.exists():
            aside = folder.with_name(f".tmp-removed-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


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
