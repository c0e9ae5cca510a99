"""Checkpoints: folders that any Hugging Face user can load, with what a resume needs beside the model."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_ft import layout
from lightning_ft.atomic import MANIFEST, broken, whole_folder
from lightning_ft.checkpoint import path_of
from lightning_ft.errors import UsageError
from lightning_ft.run.state import PARTS, TENSORS, TREE, load_state, save_state

if TYPE_CHECKING:
    from lightning_ft.run.card import ModelWriter


class FolderCheckpoint(CheckpointIO):
    """Writes Lightning's checkpoint dictionary as a folder: the model in its own format, the rest as plain state.

    Args:
        writer: Writes model, tokenizer, template and card into a folder.
        behind: Whether a thread writes copies while training goes on; one folder at a time.
    """

    def __init__(self, writer: ModelWriter, *, behind: bool = False) -> None:
        self.writer, self.behind = writer, behind
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def gather(self, *, keep: bool) -> dict[str, Tensor]:
        """What of the model is to be saved and lies in parts in several processes; all of them have to ask."""
        return self.writer.gather(keep=keep)

    def write(self, checkpoint: dict[str, Any], folder: Path, gathered: dict[str, Tensor] | None = None) -> None:
        """Write everything into a folder that is there."""
        self.writer(folder, gathered)
        save_state(checkpoint, folder)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the folder atomically, or begin to, when the one before is written.

        Raises:
            TrainingError: this one, or the one before, could not be written.
        """
        self.settle()
        if not self.behind:
            self._save(checkpoint, Path(path), None)
            return
        copies = apply_to_collection(checkpoint, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
        self._thread = threading.Thread(target=self._try, args=(copies, Path(path), self.writer.copies()), name="checkpoint")
        self._thread.start()

    def _save(self, checkpoint: dict[str, Any], path: Path, model: dict[str, Tensor] | None) -> None:
        with whole_folder(path) as folder:
            self.write(checkpoint, folder, model)

    def _try(self, checkpoint: dict[str, Any], path: Path, model: dict[str, Tensor]) -> None:
        try:
            self._save(checkpoint, path, model)
        except BaseException as error:
            self._error = error

    def settle(self) -> None:
        """Wait until nothing is being written any more.

        Raises:
            TrainingError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def teardown(self) -> None:
        """Wait, at the end of a run that has an error of its own to tell."""
        if self._thread is not None:
            self._thread.join()

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
        folder = Path(path)
        if folder.exists():
            aside = folder.with_name(f".tmp-removed-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def write_best_model(run: Path, step: int) -> None:
    """`best_model` of a run folder: the checkpoint of that step without the trainer's state."""
    with whole_folder(run / layout.BEST) as target:
        of_the_trainer = shutil.ignore_patterns(MANIFEST, TENSORS, TREE, PARTS)
        shutil.copytree(path_of(run, step), target, dirs_exist_ok=True, ignore=of_the_trainer)
