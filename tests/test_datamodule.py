from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lightning_ft.data import datamodule
from lightning_ft.data.datamodule import FineTuneData
from lightning_ft.data.schedule import Schedule
from lightning_ft.data.split import SPLITS
from lightning_ft.data.table import EncodedTable, TableWriter
from lightning_ft.data.targets import supervised
from lightning_ft.types import IGNORE_INDEX, Encoded

if TYPE_CHECKING:
    from pathlib import Path

PAD = 99


def row(i: int, length: int, *, weight: float = 1.0) -> Encoded:
    """Tokens i, i + 1, ...; the first half is context."""
    ids = list(range(i, i + length))
    half = length // 2
    return Encoded(ids, [IGNORE_INDEX] * half + ids[half:], f"x:{i}", weight)


def data(folder: Path, train: list[Encoded], held: list[Encoded] | None = None, **options: Any) -> FineTuneData:
    rows = {"train": train, "validation": held or [], "test": []}
    for split in SPLITS:
        writer = TableWriter(folder / f"{split}.arrow")
        writer.write(rows[split], [None] * len(rows[split]))
        writer.close()
    tables = {split: EncodedTable(folder / f"{split}.arrow") for split in SPLITS}
    train_table = tables["train"]
    schedule = Schedule(lengths=train_table.lengths, supervised=train_table.supervised, **options)
    return FineTuneData(tables, schedule, PAD)


LENGTHS = [3, 9, 4, 4, 12, 2, 7, 5, 6, 3, 8]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_step_has_the_scheduled_rows_and_tokens(tmp_path: Path, packed: bool, world_size: int) -> None:
    train = [row(i, length, weight=0.5 if i % 3 == 0 else 1.0) for i, length in enumerate(LENGTHS)]
    made = data(tmp_path, train, batch_size=2, batch_tokens=16, world_size=world_size, packed=packed)
    seen: list[str] = []
    for number in range(made.schedule.total_steps):
        plan = made.schedule.step(number)
        steps = [made.build(number, rank) for rank in range(world_size)]
        assert {step.number for step in steps} == {number}
        assert all(step.totals == {"tokens": plan.tokens, "rows": plan.rows} for step in steps)
        # Found here, as a GPU would make the host wait for it; of these very labels and weights, or it would not be taken.
        assert all(supervised(batch) is batch.supervised for step in steps for batch in step.micro)
        counted = 0.0
        for rank, step in enumerate(steps):
            for i, batch in enumerate(step.micro):
                assert batch.rows == tuple(f"x:{index}" for index in plan.ranks[rank][i])
                assert (batch.documents is not None) == packed
                assert tuple(batch.input_ids.shape) == made.shape(plan.ranks[rank][i])
                weights = torch.ones_like(batch.labels, dtype=torch.float32) if batch.weights is None else batch.weights
                counted += float((weights * (batch.labels != IGNORE_INDEX)).sum())
                if (rank, i) in plan.fillers:
                    assert not weights.any(), "a filler counts nowhere"
                    continue
                assert batch.lengths == tuple(LENGTHS[int(name[2:])] for name in batch.rows)
                seen += batch.rows
        assert counted == plan.tokens
    assert sorted(seen) == sorted(f"x:{i}" for i in range(len(LENGTHS))), "every row once"


def test_packed_rows_are_filled_up_to_the_lengths_of_the_run(tmp_path: Path) -> None:
    made = data(tmp_path, [row(i, 130) for i in range(4)], batch_size=1, packed=True)
    assert made.row_lengths == (136,)
    assert {made.build(number).micro[0].input_ids.shape[1] for number in range(4)} == {136}, "144 by the rule for any run"


def test_padding_is_the_pad_token_without_labels(tmp_path: Path) -> None:
    made = data(tmp_path, [row(0, 2), row(10, 4)], batch_size=2)
    (batch,) = made.build(0).micro
    short = batch.rows.index("x:0")
    assert batch.input_ids[short].tolist() == [0, 1, PAD, PAD]
    assert batch.labels[short].tolist() == [IGNORE_INDEX, 1, IGNORE_INDEX, IGNORE_INDEX]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_validation_covers_every_row_once_over_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.setattr(datamodule, "VALIDATION_TOKENS", 12)
    made = data(tmp_path, [row(0, 2)], [row(i, length) for i, length in enumerate([*LENGTHS, 40])])
    assert made.has_validation
    plans = [made.validation_plan(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(i for plan in plans for batch in plan for i in batch) == list(range(len(LENGTHS) + 1))
    assert len({len(plan) for plan in plans}) == 1, "as many forward passes on every rank"
    lengths = made.tables["validation"].lengths
    for batch in (batch for plan in plans for batch in plan if batch):
        assert len(batch) == 1 or len(batch) * lengths[list(batch)].max() <= 12
        made_batch = made.validation_batch(batch)
        assert made_batch.rows == tuple(f"x:{i}" for i in batch)
        assert made_batch.input_ids.shape == (len(batch), lengths[list(batch)].max())


def test_a_batch_without_rows_can_be_run_but_names_none(tmp_path: Path) -> None:
    made = data(tmp_path, [row(0, 2)], [row(5, 7), row(20, 3)])
    filler = made.validation_batch(())
    assert filler.rows == ()
    assert filler.input_ids.tolist() == [[20, 21, 22]]


def test_without_validation(tmp_path: Path) -> None:
    made = data(tmp_path, [row(0, 2)])
    assert not made.has_validation
    assert made.validation_plan() == []


def test_building_again_gives_the_same(tmp_path: Path) -> None:
    made = data(tmp_path, [row(i, length) for i, length in enumerate(LENGTHS)], batch_size=3, epochs=2)
    last = made.schedule.total_steps - 1
    one, other = made.build(last), made.build(last)
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(one.micro, other.micro, strict=True))
    with pytest.raises(IndexError):
        made.build(last + 1)


def test_workers_leave_signals_to_the_run() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        datamodule._unmoved(0)
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN, signal.SIG_IGN]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
