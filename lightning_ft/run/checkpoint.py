"""Checkpoints: folders that any Hugging Face user can load, with what a resume needs beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lightning_ft.atomic import broken, whole_folder
from lightning_ft.errors import UsageError
from lightning_ft.run.state import load_state, save_state

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_ft.run.card import ModelWriter


class FolderCheckpoint(CheckpointIO):
    """Writes Lightning's checkpoint dictionary as a folder: the model in its own format, the rest as plain state.

    Args:
        writer: Writes model, tokenizer, template and card into a folder.
    """

    def __init__(self, writer: ModelWriter) -> None:
        self.writer = writer

    def gather(self, *, keep: bool) -> dict[str, Tensor]:
        """What of the model is to be saved and lies in parts in several processes; all of them have to ask."""
        return self.writer.gather(keep=keep)

    def write(self, checkpoint: dict[str, Any], folder: Path, gathered: dict[str, Tensor] | None = None) -> None:
        """Write everything into a folder that is there."""
        self.writer(folder, gathered)
        save_state(checkpoint, folder)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the folder atomically."""
        with whole_folder(Path(path)) as folder:
            self.write(checkpoint, folder)

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
