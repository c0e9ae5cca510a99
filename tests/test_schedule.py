import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ft.data.schedule import PlannedStep, Schedule

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=70)
MODES = st.sampled_from(["rows", "rows bounded in tokens", "tokens", "neither"])


def schedule(lengths: list[int], **options: object) -> Schedule:
    counts = np.array(lengths, dtype=np.int64)
    return Schedule(lengths=counts, supervised=counts / 2, **options)  # type: ignore[arg-type]  # mixed options


@st.composite
def schedules(draw: st.DrawFn, /, **fixed: object) -> Schedule:
    mode = draw(MODES)
    options: dict[str, object] = {
        "epochs": draw(st.sampled_from([0.3, 1.0, 1.5, 2.0])),
        "seed": draw(st.integers(0, 3)),
        "world_size": draw(st.integers(1, 4)),
        "accumulate": draw(st.integers(1, 4)),
        "packed": draw(st.booleans()),
        "batch_size": draw(st.integers(1, 7)) if mode.startswith("rows") else None,
        "batch_tokens": draw(st.integers(10, 150)) if mode.endswith("tokens") else None,
    }
    return schedule(draw(LENGTHS), **(options | fixed))


def rows_of(step: PlannedStep) -> list[int]:
    """The rows that count in a step, sorted."""
    return sorted(
        row
        for rank, cut in enumerate(step.ranks)
        for i, micro in enumerate(cut)
        if (rank, i) not in step.fillers
        for row in micro
    )


@given(schedules(epochs=2.0))
def test_every_row_comes_exactly_once_per_epoch(plan: Schedule) -> None:
    seen = Counter(row for step in plan for row in rows_of(step))
    assert seen == dict.fromkeys(range(len(plan.lengths)), 2)
    first = [row for number in range(plan.steps_per_epoch) for row in rows_of(plan.step(number))]
    assert sorted(first) == list(range(len(plan.lengths)))


@given(schedules())
def test_no_row_comes_twice_in_an_epoch_however_short(plan: Schedule) -> None:
    seen = Counter(row for step in plan for row in rows_of(step))
    assert max(seen.values()) <= np.ceil(plan.epochs)


@given(schedules())
def test_a_step_knows_its_totals(plan: Schedule) -> None:
    for step in plan:
        rows = rows_of(step)
        assert step.rows == len(rows) > 0
        assert step.tokens == plan.supervised[rows].sum()


@given(schedules())
def test_ranks_meet_equally_often_and_their_loads_are_close(plan: Schedule) -> None:
    for step in plan:
        assert len(step.ranks) == plan.world_size
        assert len({len(cut) for cut in step.ranks}) == 1
        shares = [
            [row for i, micro in enumerate(cut) if (rank, i) not in step.fillers for row in micro]
            for rank, cut in enumerate(step.ranks)
        ]
        loads = [int(plan.lengths[share].sum()) for share in shares]
        if plan.packed and not plan.rows_mode:
            assert len(step.ranks[0]) <= plan.accumulate
            boxes = [int(plan.lengths[list(micro)].sum()) for cut in step.ranks for micro in cut]
            assert max(loads) - min(loads) <= max(boxes), "never more than one apart"
            assert loads == sorted(loads, reverse=True), "fullest first"
            continue
        assert max(map(len, shares)) <= np.ceil(step.rows / plan.world_size)
        # Longest first to whom has least: when a rank got its last row, none that could still take one had less.
        longest = int(plan.lengths[rows_of(step)].max())
        open_ranks = [
            load for load, share in zip(loads, shares, strict=True) if len(share) < np.ceil(step.rows / plan.world_size)
        ]
        for load in open_ranks:
            assert max(loads) - load <= longest


@given(schedules())
def test_budgets_are_kept(plan: Schedule) -> None:
    for micro in itertools.chain.from_iterable(cut for step in plan for cut in step.ranks):
        assert micro
        lengths = plan.lengths[list(micro)]
        cells = lengths.sum() if plan.packed else lengths.max() * len(lengths)
        if plan.batch_tokens is not None and len(micro) > 1:
            assert cells <= plan.batch_tokens
        if plan.rows_mode:
            assert len(micro) <= (plan.batch_size or 16)


@given(schedules())
def test_a_step_is_not_larger_than_its_whole(plan: Schedule) -> None:
    whole = plan.rows_per_step if plan.rows_mode else (plan.batch_tokens or 0) * plan.accumulate * plan.world_size
    for step in plan:
        lengths = plan.lengths[rows_of(step)]
        cells = lengths.sum() if plan.packed else lengths.max() * len(lengths)
        longest = int(lengths.max())
        alone = len(lengths) == 1 or (plan.packed and plan.batch_tokens is not None and longest > plan.batch_tokens)
        assert (len(lengths) if plan.rows_mode else cells) <= whole or alone, "a row may be longer than its micro-batch"


SAME = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (2, 1, 4), (1, 1, 8)]
"""batch_size, accumulate, world_size: 8 rows a step."""


@given(LENGTHS, st.booleans(), st.integers(0, 3), st.sampled_from([1.0, 1.5]))
def test_rows_of_a_step_do_not_depend_on_how_it_is_cut(lengths: list[int], packed: bool, seed: int, epochs: float) -> None:
    plans = [
        schedule(lengths, batch_size=b, accumulate=a, world_size=w, packed=packed, seed=seed, epochs=epochs) for b, a, w in SAME
    ]
    expected = [(rows_of(step), step.tokens) for step in plans[0]]
    for plan in plans[1:]:
        assert [(rows_of(step), step.tokens) for step in plan] == expected


@given(LENGTHS, st.booleans(), st.integers(0, 3))
def test_rows_of_a_step_by_tokens_do_not_depend_on_how_it_is_cut(lengths: list[int], packed: bool, seed: int) -> None:
    """Packed, micro-batches are made first: their size is one of the things that decide."""
    plans = [
        schedule(lengths, batch_tokens=b, accumulate=a, world_size=w, packed=packed, seed=seed)
        for b, a, w in [(160, 1, 1), (40, 4, 1), (40, 2, 2), (40, 1, 4)][packed:]
    ]
    expected = [rows_of(step) for step in plans[0]]
    for plan in plans[1:]:
        assert [rows_of(step) for step in plan] == expected


@given(schedules(), st.randoms(use_true_random=False))
def test_a_step_can_be_asked_for_alone(plan: Schedule, random: object) -> None:
    again = Schedule(**{name: getattr(plan, name) for name in plan.__dataclass_fields__})
    number = random.randrange(plan.total_steps)  # type: ignore[attr-defined]  # hypothesis' random has no public type
    assert again.step(number) == list(plan)[number]


@given(LENGTHS, st.floats(0.05, 3.5), st.integers(1, 5))
def test_fractional_epochs(lengths: list[int], epochs: float, size: int) -> None:
    plan = schedule(lengths, batch_size=size, epochs=epochs)
    per_epoch = -(-len(lengths) // size)
    assert plan.steps_per_epoch == per_epoch
    assert plan.total_steps == int(epochs) * per_epoch + (max(1, round(epochs % 1 * per_epoch)) if epochs % 1 else 0)
    done = [plan.epoch_of(number) for number in range(plan.total_steps + 1)]
    assert done[0] == 0
    assert all(a < b for a, b in itertools.pairwise(done))
    assert done[-1] <= np.ceil(epochs)


def test_epochs_are_ordered_differently_and_by_the_seed() -> None:
    plan = schedule(list(range(1, 41)), batch_size=4, epochs=2)
    steps = [rows_of(step) for step in plan]
    assert steps[:10] != steps[10:]
    assert steps == [rows_of(step) for step in schedule(list(range(1, 41)), batch_size=4, epochs=2)]
    assert steps != [rows_of(step) for step in schedule(list(range(1, 41)), batch_size=4, epochs=2, seed=1)]


@pytest.mark.parametrize(("max_steps", "total"), [(3, 3), (10, 10), (99, 10), (None, 10)])
def test_max_steps_only_ends_earlier(max_steps: int | None, total: int) -> None:
    plan = schedule([5] * 39, batch_size=4, max_steps=max_steps)
    assert plan.total_steps == total == len(list(plan))
    for number in (-1, total):
        with pytest.raises(IndexError):
            plan.step(number)


def test_rank_without_rows_gets_a_filler() -> None:
    plan = schedule([9, 4, 7], batch_size=1, world_size=2)
    last = plan.step(1)
    assert last.rows == 1
    assert last.fillers == {(1, 0)}
    assert last.ranks[1] == last.ranks[0]


def test_buckets_save_padding_and_packing_saves_all() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 2000).tolist()
    padded = schedule(lengths, batch_size=8).padding_share()
    assert padded < 0.25
    at_random = [lengths[i : i + 8] for i in range(0, 2000, 8)]
    assert padded < 0.5 * (1 - sum(lengths) / sum(max(rows) * 8 for rows in at_random))
    assert schedule(lengths, batch_size=8, packed=True).padding_share() == 0


@pytest.mark.parametrize(("accumulate", "ranks"), [(1, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_packed_micro_batches_are_full_and_mixed(seed: int, accumulate: int, ranks: int) -> None:
    """Filled in order they would miss half a row each, 3 to 5 %; sorted by length, some would have three times the rows."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(4.8, 0.6, 3000), 20, 400).astype(int)
    plan = schedule(lengths.tolist(), batch_tokens=2048, packed=True, seed=seed, accumulate=accumulate, world_size=ranks)
    boxes = [
        micro for step in plan for r, cut in enumerate(step.ranks) for i, micro in enumerate(cut) if (r, i) not in step.fillers
    ]
    assert lengths.sum() / (2048 * len(boxes)) > 0.98
    rows = np.array([len(box) for box in boxes])
    assert rows.std() / rows.mean() < 0.25


def test_rows_go_on_with_any_number_of_ranks_when_packed() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 500).tolist()
    plans = [schedule(lengths, batch_tokens=2048, packed=True, world_size=4, ranks=ranks) for ranks in (4, 1, 2, 3)]
    expected = [(rows_of(step), step.tokens) for step in plans[0]]
    for plan in plans[1:]:
        assert [(rows_of(step), step.tokens) for step in plan] == expected


@settings(max_examples=20)
@given(st.integers(0, 100))
def test_lengths_of_steps_are_in_random_order(seed: int) -> None:
    plan = schedule(list(range(1, 641)), batch_size=8, seed=seed)
    means = [plan.lengths[rows_of(step)].mean() for step in plan]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.5
