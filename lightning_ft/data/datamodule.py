"""The LightningDataModule: scheduled steps for training, batches of like length for validation."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_ft.data.collate import muted, pack, pad
from lightning_ft.data.shapes import best_lengths, filled
from lightning_ft.types import Batch, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning_ft.data.schedule import Schedule
    from lightning_ft.data.split import Split
    from lightning_ft.data.table import EncodedTable

VALIDATION_TOKENS = 8192
"""Tokens, padding included, of a validation batch."""
LOOKED_AT = 1000
"""Steps whose sizes are looked at, evenly over the run."""


class _Steps(Dataset[Step]):
    """Step n as tensors; building one reads only its own rows."""

    def __init__(self, data: FineTuneData, rank: int) -> None:
        self.data, self.rank = data, rank

    def __getitem__(self, number: int) -> Step:
        return self.data.build(number, self.rank)


class _From(Sampler[int]):
    """Step numbers from the step that the run is at to its end."""

    def __init__(self, trainer: L.Trainer, total: int) -> None:
        self.trainer, self.total = trainer, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.trainer.global_step, self.total))


class FineTuneData(L.LightningDataModule):
    """Encoded tables and the schedule over them.

    Args:
        tables: Encoded rows by split.
        schedule: The run's steps.
        pad_id: Token id of the padding.
        workers: Processes that collate in the background.
        eval_every: Steps between validations.
    """

    def __init__(
        self, tables: Mapping[Split, EncodedTable], schedule: Schedule, pad_id: int, *, workers: int = 0, eval_every: int = 1
    ) -> None:
        super().__init__()
        self.tables = tables
        self.schedule = schedule
        self.pad_id = pad_id
        self.workers = workers
        self.eval_every = eval_every

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return len(self.tables["validation"]) > 0

    @cached_property
    def row_lengths(self) -> tuple[int, ...]:
        """What packed rows are filled up to."""
        total = self.schedule.total_steps
        looked = range(0, total, max(1, total // LOOKED_AT))
        lengths = self.schedule.lengths
        tokens = [int(lengths[list(micro)].sum()) for n in looked for rank in self.schedule.step(n).ranks for micro in rank]
        return best_lengths(tokens, total / max(1, len(looked)))

    def build(self, number: int, rank: int = 0) -> Step:
        """Step `number` of one rank as tensors."""
        plan = self.schedule.step(number)
        table = self.tables["train"]
        batches = []
        for position, micro in enumerate(plan.ranks[rank]):
            rows = [table[i] for i in micro]
            batch = pack(rows, self.shape(micro)[1], self.pad_id) if self.schedule.packed else pad(rows, self.pad_id)
            batches.append(muted(batch) if (rank, position) in plan.fillers else batch)
        return Step(number, tuple(batches), {"tokens": plan.tokens, "rows": float(plan.rows)})

    def shape(self, micro: Sequence[int]) -> tuple[int, int]:
        """Rows and tokens, filling or padding included, of the micro-batch that these training rows make."""
        lengths = self.schedule.lengths[list(micro)]
        if not self.schedule.packed:
            return len(micro), int(lengths.max())
        return 1, filled(int(lengths.sum()), self.row_lengths)

    def train_dataloader(self) -> DataLoader[Step]:
        """One item per optimiser step, from the step that the run is at."""
        trainer = self.trainer
        assert trainer is not None
        return DataLoader(
            _Steps(self, trainer.global_rank),
            sampler=_From(trainer, self.schedule.total_steps),
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=False,
            # Every iter(DataLoader) draws a base seed: from its own generator, or dropout would depend on it.
            generator=torch.Generator().manual_seed(0),
        )

    def validation_plan(self, split: Split = "validation", rank: int = 0, world_size: int = 1) -> list[tuple[int, ...]]:
        """Row indices of each evaluation batch of a rank: like lengths together, bounded in tokens."""
        lengths = self.tables[split].lengths
        order = np.argsort(-lengths, kind="stable").tolist()
        batches: list[list[int]] = []
        for i in order:
            if batches and (len(batches[-1]) + 1) * int(lengths[batches[-1][0]]) <= VALIDATION_TOKENS:
                batches[-1].append(i)
            else:
                batches.append([i])
        mine = [tuple(batch) for batch in batches[rank::world_size]]
        # Every rank makes as many forward passes: it would wait for the others in FSDP, or at the sum in the end.
        return mine + [()] * (math.ceil(len(batches) / world_size) - len(mine))

    def validation_batch(self, indices: tuple[int, ...], split: Split = "validation") -> Batch:
        """The rows as a padded batch; without any, a batch that names no row: it keeps a rank in step and counts nowhere."""
        if indices:
            return pad([self.tables[split][i] for i in indices], self.pad_id)
        filler = pad([self.tables[split][int(self.tables[split].lengths.argmin())]], self.pad_id)
        filler.rows = ()
        return filler

    def _evaluation(self, split: Split) -> DataLoader[Batch] | list[Any]:
        trainer = self.trainer
        assert trainer is not None
        if not len(self.tables[split]):
            return []
        plan = self.validation_plan(split, trainer.global_rank, trainer.world_size)
        data = self

        class Batches(Dataset[Batch]):
            def __len__(self) -> int:
                return len(plan)

            def __getitem__(self, index: int) -> Batch:
                return data.validation_batch(plan[index], split)

        return DataLoader(Batches(), batch_size=None, shuffle=False, generator=torch.Generator().manual_seed(0))

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Validation rows."""
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Test rows."""
        return self._evaluation("test")
