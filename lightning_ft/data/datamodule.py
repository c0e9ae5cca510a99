"""The LightningDataModule: scheduled steps for training, batches of like length for validation."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import signal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_ft.data.collate import muted as without_weight
from lightning_ft.data.collate import pack, pad
from lightning_ft.data.prefix import prompt_tokens, share_each
from lightning_ft.data.shapes import best_lengths, filled
from lightning_ft.data.stream import Shard
from lightning_ft.data.targets import found_ahead
from lightning_ft.types import Batch, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_ft.data.schedule import Schedule
    from lightning_ft.data.split import Split
    from lightning_ft.data.stream import Stream
    from lightning_ft.data.table import EncodedTable

VALIDATION_TOKENS = 8192
"""Tokens, padding included, of a validation batch."""
LOOKED_AT = 1000
"""Steps whose sizes decide what packed rows are filled up to."""


def _place(trainer: L.Trainer) -> tuple[int, int]:
    """This process's number among those that see different rows, and how many these are."""
    module: Any = trainer.lightning_module
    place: tuple[int, int] = module.data_place
    return place


class _Steps(Dataset[Step]):
    """Step n as tensors; building one reads only its own rows."""

    def __init__(self, data: FineTuneData, rank: int) -> None:
        self.data, self.rank = data, rank

    def __getitem__(self, number: int) -> Step:
        return self.data.build(number, self.rank)


class _From(Sampler[int]):
    """Step numbers from the step that the run is at to its end."""

    def __init__(self, trainer: L.Trainer, total: int, stream: Stream | None) -> None:
        self.trainer, self.total, self.stream = trainer, total, stream

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for number in range(self.trainer.global_step, self.total):
            if self.stream is not None:
                self.stream.ahead(number, self.trainer.global_step)
            yield number


class FineTuneData(L.LightningDataModule):
    """Encoded tables and the schedule over them.

    Args:
        tables: Encoded rows by split.
        schedule: The run's steps; of a stream those of its first shard.
        pad_id: Token id of the padding.
        workers: Processes that collate in the background.
        eval_every: Steps between validations.
        stream: Where the steps after the first shard come from.
        eval_rows: Most rows of an evaluation batch; None: as many as have `VALIDATION_TOKENS`.
    """

    def __init__(
        self, tables: Mapping[Split, EncodedTable], schedule: Schedule, pad_id: int, *, workers: int = 0, eval_every: int = 1,
        stream: Stream | None = None, eval_rows: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stream = stream
        self.total_steps = schedule.total_steps if stream is None else stream.total_steps
        self.tables = tables
        self.schedule = schedule
        self.pad_id = pad_id
        self.workers = workers
        self.eval_every = eval_every
        self.eval_rows = eval_rows
        self.references: Mapping[Split, Tensor] | None = None
        """By split, (rows, texts) log-probabilities under the model that training began with; None: nothing needs them."""
        self.prefix = 0
        """Tokens that all rows begin with and that a packed row has only once; 0: it has all tokens of its rows."""
        self._prompts: dict[int, int] | None = None
        """By training row what `prompt_tokens` is; None: a packed row has all tokens of its texts."""

    def share(self, prefix: int = 0, *, prompts: bool = False) -> None:
        """Let packed rows be computed with only once what all training rows, or the texts of each of them, begin with."""
        self.prefix, self._prompts = prefix, {} if prompts else None
        self.__dict__.pop("row_lengths", None)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return len(self.tables["validation"]) > 0

    @cached_property
    def row_lengths(self) -> tuple[int, ...]:
        """What packed rows are filled up to."""
        looked = self.known_steps(LOOKED_AT)
        lengths = self.schedule.lengths
        tokens = [
            int(lengths[list(micro)].sum()) - sum(self.alike(micro))
            for n in looked for rank in self.schedule.step(n).ranks for micro in rank
        ]  # fmt: skip
        return best_lengths(tokens, self.total_steps / max(1, len(looked)))

    def known_steps(self, most: int) -> range:
        """About so many of the steps whose rows are known before training, evenly over them."""
        known = min(self.schedule.total_steps, self.total_steps)
        return range(0, known, max(1, known // most))

    def build(self, number: int, rank: int = 0) -> Step:
        """Step `number` of one rank as tensors."""
        shard = Shard(0, self.tables["train"], self.schedule) if self.stream is None else self.stream.at(number)
        plan = shard.step(number)
        batches = []
        for position, micro in enumerate(plan.ranks[rank]):
            batches.append(self.training_batch(micro, shard.table, muted=(rank, position) in plan.fillers))
        return Step(number, tuple(batches), {"tokens": plan.tokens, "rows": float(plan.rows)})

    def training_batch(self, micro: Sequence[int], table: EncodedTable | None = None, *, muted: bool = False) -> Batch:
        """Training rows as a micro-batch.

        Args:
            micro: Their numbers in the table.
            table: That of their shard; None: the only one there is.
            muted: Whether they count nowhere.
        """
        rows = [(table or self.tables["train"])[i] for i in micro]
        alike = self.alike(micro)
        if self.schedule.packed:
            length = self.filled(sum(len(row.input_ids) for row in rows) - sum(alike)) + sum(alike)
            batch = pack(rows, length, self.pad_id)
        else:
            batch = pad(rows, self.pad_id)
        batch = found_ahead(without_weight(batch) if muted else batch)
        batch.reference = self._reference("train", micro)
        return share_each(batch, alike)

    def trained_rows(self) -> NDArray[np.int64]:
        """Numbers of the training rows that any step of the run has, ascending; of a run without a stream."""
        steps = (self.schedule.step(number) for number in range(self.total_steps))
        return np.unique([i for step in steps for rank in step.ranks for micro in rank for i in micro])

    def _reference(self, split: Split, rows: Sequence[int]) -> Tensor | None:
        """(rows * texts,) of rows in this order."""
        known = (self.references or {}).get(split)
        return None if known is None else known[list(rows)].flatten()

    def alike(self, rows: Sequence[int]) -> list[int]:
        """Of each document of a packed row of these training rows, the tokens that are computed in an earlier one."""
        if self._prompts is None:
            return [0] + [self.prefix] * (len(rows) - 1)
        table = self.tables["train"]
        for i in rows:
            if i not in self._prompts:
                self._prompts[i] = prompt_tokens(table[i])
        return [tokens for i in rows for tokens in (0, *[self._prompts[i]] * (table.texts - 1))]

    def filled(self, tokens: int) -> int:
        """What a packed row of so many computed tokens is filled up to."""
        return filled(tokens, self.row_lengths)

    def shape(self, micro: Sequence[int]) -> tuple[int, int]:
        """Rows and tokens, filling or padding included, that are computed of these rows of the schedule."""
        lengths = self.schedule.lengths[list(micro)]
        if self.schedule.packed:
            return 1, self.filled(int(lengths.sum()) - sum(self.alike(micro)))
        together = self.tables["train"].texts
        return len(micro) * together, int(lengths.max()) // together

    def train_dataloader(self) -> DataLoader[Step]:
        """One item per optimiser step, from the step that the run is at."""
        trainer = self.trainer
        assert trainer is not None
        if self.workers:
            atexit.unregister(_end_workers)  # once, however many runs the process has
            atexit.register(_end_workers)
        return DataLoader(
            _Steps(self, _place(trainer)[0]),
            sampler=_From(trainer, self.total_steps, self.stream),
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_unmoved,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            # Every iter(DataLoader) draws a base seed: from its own generator, or dropout would depend on it.
            generator=torch.Generator().manual_seed(0),
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """A step with what needs this process: references, and smaller micro-batches if the memory has not sufficed."""
        if not isinstance(batch, Step):
            return batch
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        if self.references is not None:  # a worker that makes steps began before they were known
            for micro, rows in zip(batch.micro, self.schedule.step(batch.number).ranks[module.data_place[0]], strict=True):
                micro.reference = self._reference("train", rows)
        step: Step = module.shortage.cut(batch)
        return step.pin_memory() if step is not batch and module.device.type == "cuda" else step

    def validation_plan(
        self, split: Split = "validation", rank: int = 0, world_size: int = 1, rows: NDArray[np.int64] | None = None
    ) -> list[tuple[int, ...]]:
        """Row indices of each evaluation batch of a rank: like lengths together, bounded in rows or in tokens.

        Args:
            split: Of which rows.
            rank: The process among those that see different rows.
            world_size: How many these are.
            rows: The rows that are meant; None: all.
        """
        lengths = self.tables[split].padded
        chosen = np.arange(len(lengths)) if rows is None else rows
        order = chosen[np.argsort(-lengths[chosen], kind="stable")].tolist()
        batches: list[list[int]] = []
        for i in order:
            if batches and len(batches[-1]) < (self.eval_rows or VALIDATION_TOKENS // int(lengths[batches[-1][0]])):
                batches[-1].append(i)
            else:
                batches.append([i])
        mine = [tuple(batch) for batch in batches[rank::world_size]]
        # Every rank makes as many forward passes: it would wait for the others in FSDP, or at the sum in the end.
        return mine + [()] * (math.ceil(len(batches) / world_size) - len(mine))

    def validation_batch(self, indices: tuple[int, ...], split: Split = "validation") -> Batch:
        """The rows as a padded batch; without any, a batch that names no row: it keeps a rank in step and counts nowhere."""
        table = self.tables[split]
        rows = indices or (int(table.lengths.argmin()),)
        batch = pad([table[i] for i in rows], self.pad_id)
        batch.reference = self._reference(split, rows)
        if not indices:
            batch.rows = ()
        return batch

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Validation rows."""
        trainer = self.trainer
        assert trainer is not None
        if not len(self.tables["validation"]):
            return []
        plan = self.validation_plan("validation", *_place(trainer))
        data = self

        class Batches(Dataset[Batch]):
            def __len__(self) -> int:
                return len(plan)

            def __getitem__(self, index: int) -> Batch:
                return data.validation_batch(plan[index], "validation")

        return DataLoader(Batches(), batch_size=None, shuffle=False, generator=torch.Generator().manual_seed(0))


def _unmoved(_: int) -> None:
    """Leave signals to the process that a worker works for: Ctrl-C goes to all of them, and the step is to end and be saved.

    A worker ends with that process, or when it is told to.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """Before multiprocessing, as the process ends, asks what is left to end by the signal that is ignored, and waits for it."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
