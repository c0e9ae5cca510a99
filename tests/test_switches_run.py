"""What surrounds the steps: which measurement decides and when, how often what is done, and that sizes change nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import pytest
import torch

from lightning_ft.checkpoint import checkpoints, step_of
from lightning_ft.errors import UsageError
from lightning_ft.monitor import BETTER, Monitor
from lightning_ft.run.hardware import formats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import TinyFit

NAN = math.nan


class Scripted(L.Callback):
    """Measures what it is told to, validation by validation."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("quality", self.values.pop(0), logger=False)


def stopped_at(values: Sequence[float], mode: str, patience: int, threshold: float) -> int:
    """Validation after which training ends: patience used up without one that is better by more than the threshold."""
    best, waited = (math.inf if mode == "min" else -math.inf), 0
    for number, value in enumerate(values, 1):
        if (best - value if mode == "min" else value - best) > threshold:
            best, waited = value, 0
        else:
            waited += 1
        if waited >= patience:
            return number
    return len(values)


@pytest.mark.parametrize(
    ("values", "mode", "patience", "threshold", "stop", "best"),
    [
        ([3.0, 2.0, 2.5, 2.25, 1.0, 0.5], "min", 2, 0.0, 4, 2),
        ([3.0, 2.0, 2.5, 2.25, 1.0, 0.5], "min", 3, 0.0, 6, 6),
        ([3.0, 2.0, 2.5, 1.0, 4.0, 5.0], "max", 4, 0.0, 6, 6),
        ([3.0, 2.0, 2.5, 1.0, 4.0, 5.0], "max", 2, 0.0, 3, 1),
        # each better than the last, none by more than a half but every second
        ([3.0, 2.75, 2.375, 2.25, 1.75, 1.5], "min", 1, 0.5, 2, 2),
        ([3.0, 2.75, 2.375, 2.25, 1.75, 1.5], "min", 2, 0.5, 6, 6),
        ([1.0, 1.5, 1.75, 2.0, 2.0, 2.5], "max", 2, 0.5, 5, 4),
    ],
)
def test_early_stopping_and_the_best_model_by_a_measurement_of_ones_own(
    tiny_fit: TinyFit, capsys: Any, values: list[float], mode: str, patience: int, threshold: float, stop: int, best: int
) -> None:
    assert stopped_at(values, mode, patience, threshold) == stop, "by hand and by the rule"
    seen = tiny_fit(
        eval_every=1, save_every=None, keep_best=1, monitor="quality", monitor_mode=mode, early_stopping=patience,
        early_stopping_threshold=threshold, trainer={"callbacks": [Scripted(values)]},
    )  # fmt: skip
    assert seen.run.record["steps"] == stop
    said = f"did not improve in the last {patience} records. Best score: "
    assert (said in capsys.readouterr().err) == (stop < len(values))
    assert seen.run.record["best_step"] == best
    assert sorted(map(step_of, checkpoints(seen.run.folder))) == sorted({best, stop})
    assert (seen.run.folder / "best_model").is_dir()


@pytest.mark.parametrize("mode", ["auto", "min"])
def test_accuracy_is_better_when_higher_unless_said_otherwise(tiny_fit: TinyFit, mode: str) -> None:
    seen = tiny_fit(
        watched=False, eval_every=1, save_every=1, keep_best=2, monitor="val_token_accuracy", monitor_mode=mode, max_steps=8,
        learning_rate=0.03, lr_scheduler="constant",
    )  # fmt: skip
    found = seen.validations("val_token_accuracy")
    assert len(set(found.values())) > 2
    order = sorted(found, key=lambda step: (-found[step] if mode == "auto" else found[step], step))
    assert seen.run.record["best_step"] == order[0]
    assert {step_of(p) for p in checkpoints(seen.run.folder)} == {*order[:2], 8}


def test_the_loss_of_one_file_can_decide(tiny_fit: TinyFit, tiny_folder: Path) -> None:
    files = [str(tiny_folder / name) for name in ("rows.jsonl", "more.jsonl")]
    monitor = f"val_loss/{files[1]}"
    seen = tiny_fit(watched=False, data=files, eval_every=1, save_every=1, learning_rate=0.5, monitor=monitor)
    found = seen.validations(monitor)
    assert len(found) == 6
    assert seen.run.record["best_step"] == min(found, key=lambda step: found[step])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"monitor": "val_lss"}, "(val_loss, val_token_accuracy, val_loss/FILE); got 'val_lss'. Did you mean 'val_loss'?"),
        ({"monitor": "val_loss/rows.jsonl"}, "measures (val_loss, val_token_accuracy); got 'val_loss/rows.jsonl'."),
        ({"monitor": "quality", "trainer": {"callbacks": [Scripted([])]}}, "--monitor_mode min or max with --monitor quality"),
        ({"monitor": "qualty", "monitor_mode": "max", "trainer": {"callbacks": [Scripted([1.0])]}}, "Did you mean 'quality'?"),
        ({"early_stopping": 2, "split": [1, 0, 0], "data": "bare.jsonl"}, "validation rows for --early_stopping, got none"),
        ({"monitor": "val_token_accuracy", "split": [1, 0, 0], "data": "bare.jsonl"}, "validation rows for --monitor, got"),
    ],
)  # fmt: skip
def test_what_nothing_measures_is_refused(tiny_fit: TinyFit, options: dict[str, Any], expected: str) -> None:
    Path("bare.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    with pytest.raises(UsageError) as caught:
        tiny_fit(watched=False, **options)
    assert expected in str(caught.value)


def test_ranks_of_scores() -> None:
    assert {name: Monitor.of(name, "auto").mode for name in BETTER} == {"val_loss": "min", "val_token_accuracy": "max"}
    assert Monitor.of("val_loss/a/b.jsonl", "auto").mode == "min"
    for mode, wanted in (("min", [1.0, 2.0, 3.0]), ("max", [3.0, 2.0, 1.0])):
        *ranked, last = sorted([2.0, NAN, 3.0, 1.0], key=Monitor("x", mode).rank)  # type: ignore[arg-type]  # both are modes
        assert ranked == wanted
        assert math.isnan(last), "what is not a number is worst either way"


def test_how_often_what_is_done(tiny_fit: TinyFit) -> None:
    seen = tiny_fit(max_steps=10, log_every=4, eval_every=3, save_every=6, keep_best=99)
    assert [line["step"] for line in seen.run.metrics if "loss" in line] == [4, 8, 10]
    losses = seen.validations()
    assert list(losses) == [3, 6, 9, 10]
    better = {step for step in losses if losses[step] < min((losses[s] for s in losses if s < step), default=math.inf)}
    assert set(map(step_of, checkpoints(seen.run.folder))) == {6, 10} | better
    for line in seen.run.metrics:
        if "loss" in line:
            since = {4: 0, 8: 4, 10: 8}[line["step"]]
            assert line["learning_rate"] == seen.rates[line["step"] - 1], "of this step, not of the next"
            assert line["loss"] == pytest.approx(sum(seen.losses[since : line["step"]]) / (line["step"] - since), rel=1e-5)


# ---- what changes nothing ----------------------------------------------------------------------------------------------


def test_the_size_of_validation_batches_changes_no_result(tiny_fit: TinyFit) -> None:
    runs = [tiny_fit(eval_batch_size=size, learning_rate=0.01) for size in (None, 1, 4, 100)]
    assert {len(run.run.metrics) for run in runs} == {7}, "six steps and one validation"
    for name in BETTER:
        found = [next(iter(run.validations(name).values())) for run in runs]
        assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_validation_batches_have_as_many_rows_as_asked_for(tmp_path: Path) -> None:
    from types import SimpleNamespace

    import numpy as np

    from lightning_ft.data.datamodule import FineTuneData

    tables: Any = {"validation": SimpleNamespace(padded=np.array([5, 4000, 7, 3000, 9, 2000, 1]))}
    schedule: Any = SimpleNamespace(total_steps=1)

    def plan(rows: int | None) -> list[tuple[int, ...]]:
        return FineTuneData(tables, schedule, 0, eval_rows=rows).validation_plan()

    assert plan(3) == [(1, 3, 5), (4, 2, 0), (6,)]
    assert plan(1) == [(1,), (3,), (5,), (4,), (2,), (0,), (6,)]
    assert plan(None) == [(1, 3), (5, 4, 2, 0), (6,)], "8192 // 4000 = 2 rows, 8192 // 2000 = 4 rows"


@pytest.mark.parametrize(
    ("options", "exact"),
    [({"workers": 2}, True), ({"gradient_checkpointing": True}, False), ({"batch_size": 2, "accumulate": 2}, False),
     ({"batch_size": 1, "accumulate": 4}, False)],
)  # fmt: skip
@pytest.mark.parametrize("packing", ["on", "off"])
def test_the_trajectory_is_the_same_with(tiny_fit: TinyFit, options: dict[str, Any], exact: bool, packing: str) -> None:
    plain, other = (tiny_fit(learning_rate=0.01, packing=packing, **more) for more in ({}, options))
    assert len(other.losses) == 6
    assert plain.losses[-1] < plain.losses[0] - 0.1
    if exact:
        assert other.losses == plain.losses
    assert other.losses == pytest.approx(plain.losses, rel=1e-4)


def test_recomputed_activations_are_computed_twice(tiny_fit: TinyFit) -> None:
    class Counts(L.Callback):
        passes = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            def count(*_: Any) -> None:
                self.passes += 1

            pl_module.model.model.layers[0].self_attn.register_forward_pre_hook(count)

    found = {}
    for switch in (False, True):
        counts = Counts()
        tiny_fit(watched=False, gradient_checkpointing=switch, max_steps=2, eval_every=9, trainer={"callbacks": [counts]})
        found[switch] = counts.passes
    validation = found[True] - 2 * (found[True] - found[False])
    assert found[True] - found[False] == 2, "once more per step"
    assert found[False] == 2 + validation


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, for which fp16 is allowed")
def test_fp16_is_refused_on_a_cpu(tiny_fit: TinyFit) -> None:
    with pytest.raises(UsageError, match=r"^Expected a GPU for --precision fp16, found none; type --precision bf16 or fp32\.$"):
        tiny_fit(precision="fp16")


@pytest.mark.parametrize("trains_base", [True, False])
def test_fp16_on_a_gpu_scales_the_loss(monkeypatch: pytest.MonkeyPatch, trains_base: bool) -> None:
    """Lightning's 16-mixed is the one of its formats that has a `GradScaler`; test_gpu.py runs it."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = formats("fp16", trains_base=trains_base)
    assert chosen.lightning == "16-mixed"
    assert chosen.weights == (torch.float32 if trains_base else torch.float16)
    assert MixedPrecision("16-mixed", "cuda").scaler is not None


def test_adamw_updates_all_parameters_in_one_kernel(tiny_fit: TinyFit) -> None:
    seen: list[Any] = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.extend(group["fused"] for group in optimizer.param_groups)

    tiny_fit(watched=False, max_steps=1, eval_every=1, trainer={"callbacks": [Look()]})
    assert seen
    assert all(seen)
