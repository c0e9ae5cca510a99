"""FineTuner in Lightning's Trainer on a tiny model: one batch is one exact optimiser step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ft.builtin import SFT, Full
from lightning_ft.config import TrainingConfig
from lightning_ft.data.datamodule import FineTuneData
from lightning_ft.data.schedule import Schedule
from lightning_ft.data.table import EncodedTable, TableWriter
from lightning_ft.errors import TrainingError
from lightning_ft.module import FineTuner
from lightning_ft.run.quiet import quiet_libraries
from lightning_ft.testing.models import tiny_llama
from lightning_ft.types import IGNORE_INDEX, Encoded

STEPS = 3
DEFAULTS: dict[str, Any] = {
    "model": "tiny", "data": ["rows"], "learning_rate": 1e-3, "lr_scheduler": "linear", "warmup": 0,
}  # fmt: skip


def rows(count: int, seed: int) -> list[Encoded]:
    """Rows of 3 to 40 tokens with supervision from a random place on; every third has a weight of a half."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        length = int(torch.randint(3, 40, (), generator=draw))
        ids = torch.randint(0, 255, (length,), generator=draw).tolist()
        start = int(torch.randint(1, length, (), generator=draw))
        labels = [IGNORE_INDEX] * start + ids[start:]
        found.append(Encoded(ids, labels, f"rows:{i}", weight=0.5 if i % 3 == 0 else 1.0))
    return found


def table(path: Path, encoded: Sequence[Encoded]) -> EncodedTable:
    writer = TableWriter(path)
    writer.write(encoded, [None] * len(encoded))
    writer.close()
    return EncodedTable(path)


def data_of(folder: Path, validation: Sequence[Encoded] = (), **sizes: Any) -> FineTuneData:
    folder.mkdir(parents=True, exist_ok=True)
    train = table(folder / "train.arrow", rows(24, 0))
    tables: Any = {"train": train, "validation": table(folder / "validation.arrow", validation)}
    tables["test"] = tables["validation"]
    schedule = Schedule(lengths=train.lengths, supervised=train.supervised, **{"batch_size": 8, **sizes})
    return FineTuneData(tables, schedule, 256)


def module_of(data: FineTuneData, method: Any = None, optimizer: Any = torch.optim.AdamW, **options: Any) -> FineTuner:
    config = TrainingConfig(**{**DEFAULTS, **options})
    return FineTuner(config, method or Full(), SFT(), optimizer, {}, data.schedule.total_steps, tiny_llama)


def fit(module: FineTuner, data: FineTuneData, folder: Path, *callbacks: L.Callback) -> L.Trainer:
    validates = data.has_validation
    with quiet_libraries():
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=1, max_steps=data.schedule.total_steps, logger=False,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
            use_distributed_sampler=False, default_root_dir=folder, callbacks=list(callbacks),
            val_check_interval=data.schedule.total_steps, check_val_every_n_epoch=None,
            limit_val_batches=1.0 if validates else 0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return trainer


class Notes(L.Callback):
    """Gradient norms before clipping, learning rates that were used, and gradients as the optimiser got them."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.gradients: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.norms.append(float(pl_module.grad_norm))
        self.losses.append(float(pl_module.step_loss))
        self.gradients.append([p.grad.clone() for p in pl_module.trained_parameters()])


def whole_step(model: nn.Module, data: FineTuneData, number: int) -> Tensor:
    """The loss of a step in plain torch, from full logits: sum_t w_t nll_t / sum_t w_t over all of its rows."""
    total: Any = 0
    weights = 0.0
    for rank in data.schedule.step(number).ranks:
        for index in (i for micro in rank for i in micro):
            row = data.tables["train"][index]
            ids, labels = torch.tensor(row.input_ids)[None].long(), torch.tensor(row.labels)[None].long()
            logits = model(input_ids=ids).logits
            total = total + row.weight * F.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
            weights += row.weight * row.supervised
    loss: Tensor = total / weights
    return loss


@pytest.mark.parametrize("sizes", [{"batch_size": 8}, {"batch_size": 1, "accumulate": 8}, {"batch_size": 3, "accumulate": 3}])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_has_the_gradient_of_all_its_rows_at_once(tmp_path: Path, sizes: dict[str, Any], packed: bool) -> None:
    data, notes = data_of(tmp_path, packed=packed, **sizes), Notes()
    # SGD with a learning rate of nothing: every step's gradient is that of the same weights.
    module = module_of(data, optimizer=torch.optim.SGD, learning_rate=1e-30, max_grad_norm=0)
    fit(module, data, tmp_path, notes)
    assert len(notes.losses) == STEPS
    for number in range(STEPS):
        model = tiny_llama().train()
        loss = whole_step(model, data, number)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        assert notes.losses[number] == pytest.approx(float(loss.detach()), rel=1e-6)
        expected = [p.grad for p in model.parameters()]
        torch.testing.assert_close(notes.gradients[number], expected, rtol=1e-4, atol=1e-6)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in expected if g is not None]))
        assert notes.norms[number] == pytest.approx(float(norm), rel=1e-5)


def test_the_norm_is_noted_before_clipping(tmp_path: Path) -> None:
    data, notes = data_of(tmp_path), Notes()
    fit(module_of(data, max_grad_norm=0.25), data, tmp_path, notes)
    for norm, gradients in zip(notes.norms, notes.gradients, strict=True):
        assert norm > 0.5
        clipped = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        assert float(clipped) == pytest.approx(0.25, rel=1e-4)


def test_the_learning_rate_falls_by_steps_to_zero_after_the_last(tmp_path: Path) -> None:
    data, notes = data_of(tmp_path), Notes()
    trainer = fit(module_of(data), data, tmp_path, notes)
    assert notes.rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0


@pytest.mark.parametrize(("given", "trains_base", "rate"), [(None, True, 2e-5), (None, False, 2e-4), (0.5, True, 0.5)])
def test_the_learning_rate_follows_from_what_trains(
    given: float | None, trains_base: bool, rate: float, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Some(Full):
        pass

    Some.trains_base = trains_base
    assert module_of(data_of(tmp_path), Some(), learning_rate=given).learning_rate == rate


def test_a_method_may_have_a_usual_rate_of_its_own(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Quick(Full):
        learning_rate: ClassVar[float | None] = 7e-3

    assert module_of(data_of(tmp_path), Quick(), learning_rate=None).learning_rate == 7e-3
    assert module_of(data_of(tmp_path), Quick(), learning_rate=1e-5).learning_rate == 1e-5


@dataclass(frozen=True)
class Pulled(Full):
    """Full training with a penalty, which notes what `on_step` sees."""

    seen: ClassVar[list[tuple[int, bool]]] = []

    def regularizer(self, model: nn.Module) -> Tensor:
        """Half the squared first norm weight."""
        return 0.5 * model.get_parameter("model.norm.weight").square().sum()

    def on_step(self, model: nn.Module, step: int) -> None:
        """Note the step, and whether the gradients are there."""
        self.seen.append((step, all(p.grad is not None for p in model.parameters())))


def test_the_penalty_counts_once_a_step_and_methods_see_every_step(tmp_path: Path) -> None:
    found = {}
    for name, method in (("plain", Full()), ("pulled", Pulled())):
        data, notes = data_of(tmp_path / name, batch_size=2, accumulate=4), Notes()
        module = module_of(data, method, optimizer=torch.optim.SGD, learning_rate=1e-30, max_grad_norm=0)
        fit(module, data, tmp_path, notes)
        names = [n for n, _ in module.model.named_parameters()]
        found[name] = notes.gradients[0][names.index("model.norm.weight")]
    torch.testing.assert_close(found["pulled"] - found["plain"], tiny_llama().get_parameter("model.norm.weight").data)
    assert Pulled.seen == [(step, True) for step in range(STEPS)]


def test_a_step_that_is_not_finite_names_its_rows_and_changes_nothing(tmp_path: Path) -> None:
    data = data_of(tmp_path, batch_size=2, accumulate=4)
    module = module_of(data)
    bad = data.schedule.step(1).ranks[0][2]

    class Poison(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch.number == 1:
                self.before = {n: p.detach().clone() for n, p in pl_module.model.named_parameters()}
                batch.micro[2].weights = torch.full(batch.micro[2].input_ids.shape, float("nan"))

    poison = Poison()
    with pytest.raises(TrainingError, match="loss of step 2 is not finite") as caught:
        fit(module, data, tmp_path, poison)
    assert f"rows {', '.join(f'rows:{i}' for i in bad)})" in str(caught.value)
    for name, p in module.model.named_parameters():
        assert torch.equal(p, poison.before[name])


def test_a_loader_out_of_step_is_refused(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    build = data.build
    data.build = lambda number, rank=0: build(number + 1 if number == 1 else number, rank)  # type: ignore[method-assign]  # the fault
    with pytest.raises(TrainingError, match="came with step 2 where the optimiser is at step 1"):
        fit(module_of(data), data, tmp_path)


def test_dropout_differs_between_steps_and_ranks_and_seeds(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    seeds = set()
    for seed in (0, 1, 2):
        module = module_of(data, seed=seed)
        for rank in (0, 1, 7):
            module.__class__ = type("Ranked", (FineTuner,), {"data_place": (rank, 3)})
            seeds |= {module._dropout_seed(step) for step in range(20)}
    assert len(seeds) == 3 * 3 * 20


@pytest.mark.parametrize("fillers", [0, 2])
def test_validation_is_the_mean_over_all_tokens(tmp_path: Path, fillers: int) -> None:
    held_out = rows(7, 5)
    data = data_of(tmp_path, held_out)
    plan = data.validation_plan
    data.validation_plan = lambda *args, **kwargs: plan(*args, **kwargs) + [()] * fillers  # type: ignore[method-assign]  # as on a rank
    module = module_of(data, learning_rate=1e-30)
    trainer = fit(module, data, tmp_path)
    model = tiny_llama()
    nll = tokens = right = 0.0
    for row in held_out:
        logits = model(input_ids=torch.tensor(row.input_ids)[None]).logits[0, :-1].detach()
        labels = torch.tensor(row.labels)[1:]
        nll += float(F.cross_entropy(logits, labels, reduction="sum"))
        tokens += row.supervised
        right += int((logits.argmax(-1) == labels).sum())
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(nll / tokens, rel=1e-6)
    assert float(trainer.callback_metrics["val_token_accuracy"]) == pytest.approx(right / tokens)


def test_validation_tells_the_loss_of_each_source(tmp_path: Path) -> None:
    held_out = [replace(row, row=f"{'ab'[i % 2]}.jsonl:{i}{'#1' if i > 3 else ''}") for i, row in enumerate(rows(7, 5))]
    data = data_of(tmp_path, held_out)
    module = module_of(data, learning_rate=1e-30)
    module.sources = ("b.jsonl", "a.jsonl")
    trainer = fit(module, data, tmp_path)
    model = tiny_llama()
    for source in module.sources:
        own = [row for row in held_out if row.row.startswith(source)]
        logits = [model(input_ids=torch.tensor(row.input_ids)[None]).logits[0, :-1].detach() for row in own]
        pairs = zip(logits, own, strict=True)
        nll = sum(float(F.cross_entropy(out, torch.tensor(row.labels)[1:], reduction="sum")) for out, row in pairs)
        wanted = nll / sum(row.supervised for row in own)
        assert float(trainer.callback_metrics[f"val_loss/{source}"]) == pytest.approx(wanted, rel=1e-6)


def test_ranks_share_validation_and_make_as_many_passes(tmp_path: Path) -> None:
    data = data_of(tmp_path, rows(5, 5))
    for world in (1, 2, 3, 4):
        plans = [data.validation_plan("validation", rank, world) for rank in range(world)]
        assert len({len(plan) for plan in plans}) == 1
        assert sorted(i for plan in plans for batch in plan for i in batch) == list(range(5))
    assert data.validation_batch(()).rows == ()


def test_fillers_have_no_gradient_and_every_parameter_one(tmp_path: Path) -> None:
    data = data_of(tmp_path, batch_size=1, world_size=23)
    assert data.schedule.step(1).fillers == {(rank, 0) for rank in range(1, 23)}
    step = data.build(1, 5)
    module = module_of(data)
    module.configure_model()
    output = module.objective(module.model, step.micro[0])
    output.terms["nll"].sum.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    assert float(output.terms["nll"].count) == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.trained_parameters())
