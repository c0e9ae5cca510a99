"""The steps of a run: a schedule over the encoded rows, or a stream of shards with a schedule each."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

from lightning_ft.cache import cache_root
from lightning_ft.data.mixture import mixture_of
from lightning_ft.data.schedule import DEFAULT_ROWS, Schedule
from lightning_ft.data.stream import Shard, Stream, content_of
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.pipeline import Pipeline, Prepared
    from lightning_ft.data.table import EncodedTable
    from lightning_ft.run.folder import RunFolder
    from lightning_ft.run.world import World


def check_sizes(config: TrainingConfig, world: World, table: EncodedTable) -> None:
    """Refuse sizes that the rows do not fit, before any weight is loaded.

    Raises:
        UsageError: fewer rows than data-parallel ranks, or a row that is longer than a micro-batch may be.
    """
    rows, ranks = len(table), world.data_size
    if not rows:
        raise UsageError("Expected at least one training row, got none; look at the split column and --split.")
    if rows < ranks:
        raise UsageError(
            f"Expected at least as many training rows as processes that share them, {ranks}, got {rows}; type --devices {rows}"
            " or less."
        )
    lengths = table.padded if config.packing == "off" else table.lengths
    budget, longest = config.batch_tokens, int(lengths.max())
    if budget is not None and longest > budget:
        number, row = int((lengths > budget).sum()), table[int(lengths.argmax())].row
        raise UsageError(
            f"Expected --batch_tokens of at least {longest}, the tokens of the longest row ({row}), "
            f"got {budget}, which {number} rows exceed; type --batch_tokens {longest}, or cut texts with --max_length "
            f"{budget // table.texts}."
        )


class Planner:
    """Makes schedules with the sizes of a run.

    Args:
        config: The run's options.
        world: Its processes.
        packed: Whether documents share rows.
        micro_tokens: Most tokens of a micro-batch where the user does not say.
        planned: Data-parallel ranks for which the run's steps were made; None: as many as there are.
    """

    def __init__(
        self, config: TrainingConfig, world: World, *, packed: bool, micro_tokens: int, planned: int | None = None
    ) -> None:
        self.config, self.world, self.packed = config, world, packed
        self.planned = planned or world.data_size
        self.batch_size, self.batch_tokens = config.batch_size, config.batch_tokens
        if self.batch_tokens is None:
            self.batch_size, self.batch_tokens = config.batch_size or DEFAULT_ROWS, micro_tokens

    def whole(self, table: EncodedTable, say: Callable[[str], None]) -> Schedule:
        """The schedule of a run over all its rows, or over the first shard of a stream.

        Args:
            table: The training rows.
            say: Told of a mixture.
        """
        config = self.config
        mixed = config.mix or config.mix_temperature is not None
        mixture = mixture_of(config, table.sources()) if mixed else None
        if mixture is not None:
            say(mixture.summary())
        if config.stream is not None:
            return self.shard(table, 0)
        return Schedule(
            lengths=self._lengths(table), supervised=table.supervised, epochs=config.epochs, max_steps=config.max_steps,
            seed=config.seed, world_size=self.planned, ranks=self.world.data_size, batch_size=self.batch_size,
            batch_tokens=self.batch_tokens, accumulate=config.accumulate, packed=self.packed, mixture=mixture,
        )  # fmt: skip

    def shard(self, table: EncodedTable, number: int) -> Schedule:
        """The schedule of a shard: each of its rows once."""
        return Schedule(
            lengths=self._lengths(table), supervised=table.supervised, seed=self.config.seed, world_size=self.planned,
            ranks=self.world.data_size, batch_size=self.batch_size, batch_tokens=self.batch_tokens,
            accumulate=self.config.accumulate, packed=self.packed, first_epoch=number,
        )  # fmt: skip

    def _lengths(self, table: EncodedTable) -> NDArray[np.int64]:
        """What each row adds to a micro-batch, in tokens."""
        return table.lengths if self.packed else table.padded

    def stream(
        self, pipeline: Pipeline, prepared: Prepared, first: Schedule, run: RunFolder, say: Callable[[str], None]
    ) -> Stream:
        """The shards of a run.

        Args:
            pipeline: Encodes them.
            prepared: The first of them.
            first: Its schedule.
            run: The run's folder; where it has an index, the run goes on by it.
            say: Prints a line.
        """
        assert prepared.end is not None
        assert self.config.max_steps is not None
        # By the folder, and within it by the data: a run of other data in the folder of an earlier one takes its place.
        of_run = cache_root() / "stream" / hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:32]
        work, deletes = of_run / prepared.identity[:32], self.world.local_rank == 0
        if deletes and not (run.path / "stream.json").exists():
            shutil.rmtree(of_run, ignore_errors=True)
        elif deletes:
            for left in work.glob(".tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
        return Stream(
            Shard(0, prepared.tables["train"], first), prepared.end, prepared.ledger,
            lambda start, folder, stop: pipeline.encode_shard(start, prepared.held_out, folder, stop), self.shard,
            self.config.max_steps, content_of(prepared.folder), work, run.path, writes=self.world.main, deletes=deletes,
            max_lost=self.config.max_lost, say=say,
        )  # fmt: skip
