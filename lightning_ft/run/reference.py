"""What the model that training begins with makes of every row: computed once, and kept in the run folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor

from lightning_ft.atomic import write_bytes
from lightning_ft.engine.model import evaluating
from lightning_ft.engine.sharding import summed
from lightning_ft.errors import TrainingError, out_of_memory
from lightning_ft.shortage import first_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from lightning_ft.data.datamodule import FineTuneData
    from lightning_ft.data.split import Split
    from lightning_ft.module import FineTuner

REFERENCE = "reference.safetensors"
"""File in the run folder: by split, (rows, texts) float32 log-probabilities in nats; NaN of rows that no step has."""
SPLITS: tuple[Split, ...] = ("train", "validation")


class ReferencePass(L.Callback):
    """Gives every row its `Batch.reference` before the first step.

    With dropout off, and by the very model that is trained, before it is: no second model is held, whatever the method is.
    A run that goes on reads what was computed when it began.

    Args:
        data: The run's rows.
        folder: The run folder.
        say: Prints a line.
    """

    def __init__(self, data: FineTuneData, folder: Path, say: Callable[[str], None]) -> None:
        self.data, self.path, self.say = data, folder / REFERENCE, say

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read or compute it.

        Raises:
            TrainingError: the run goes on, and the file is gone or of other rows.
        """
        module: FineTuner = pl_module  # type: ignore[assignment]  # the only module that is trained with this callback
        found = self._read() if trainer.global_step else self._compute(trainer, module)
        for split in SPLITS:
            if split not in found or len(found[split]) != len(self.data.tables[split]):
                raise TrainingError(
                    f"{self.path}: expected what the model made of {len(self.data.tables[split]):,} rows of the {split} split "
                    "before training, got that of others; start the run anew."
                )
        self.data.references = found

    def _read(self) -> dict[Split, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            kept = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self.path}: expected what the model made of the rows before training, got {type(error).__name__}; start the "
                "run anew."
            ) from error
        return {split: kept[split] for split in SPLITS if split in kept}

    def _compute(self, trainer: L.Trainer, module: FineTuner) -> dict[Split, Tensor]:
        from safetensors.torch import save

        rows = {"train": self.data.trained_rows(), "validation": np.arange(len(self.data.tables["validation"]))}
        self.say(f"reference: log-probabilities of {sum(map(len, rows.values())):,} rows by the model as it is now")
        try:
            with evaluating(module):
                found = {split: self._of_split(split, rows[split], trainer, module) for split in SPLITS}
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise TrainingError(
                f"The memory does not suffice for the log-probabilities before training ({first_line(error)}); type "
                "--eval_batch_size 1, or more of it that fits, or a lower --max_length."
            ) from error
        if trainer.is_global_zero:
            write_bytes(self.path, save({str(split): values for split, values in found.items()}))
        trainer.strategy.barrier()
        return found

    def _of_split(self, split: Split, rows: NDArray[np.int64], trainer: L.Trainer, module: FineTuner) -> Tensor:
        """(rows, texts) of all processes' rows; NaN where a row is not asked for."""
        from lightning_ft.engine.loss import token_logps
        from lightning_ft.generation import tracked

        data, table, (rank, size) = self.data, self.data.tables[split], module.data_place
        out = torch.zeros(len(table), table.texts)
        batches = data.validation_plan(split, rank, size, rows) if len(rows) else []
        for members in tracked(batches, "reference", shown=trainer.is_global_zero and sys.stderr.isatty()):
            # As a step has them: in 16 bits the sums of a packed row are rounded otherwise than those of a padded one.
            made = data.training_batch(members) if split == "train" and members else data.validation_batch(members, split)
            batch = made.to(module.device)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                logps = token_logps(module.model, batch).float().cpu()
            if members:
                out[list(members)] = logps.view(len(members), -1)
        found = summed(module, out.to(module.device)).cpu()
        unasked = torch.ones(len(table), dtype=torch.bool)
        unasked[rows] = False
        found[unasked] = torch.nan
        return found
