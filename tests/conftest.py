"""Hypothesis without a clock, as how long an example takes says nothing on a busy machine; and short runs of a tiny model."""

from __future__ import annotations

import faulthandler
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from lightning_ft import Run

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

LONGEST_END = 120.0
"""Seconds after which a process that has no test any more and does not end says where it is, and dies."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """What is left behind by tests must not keep everybody waiting; during a test `faulthandler_timeout` sees to it."""
    capture = session.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)  # or nobody would see what is said
    faulthandler.dump_traceback_later(LONGEST_END, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass
class Trajectory:
    """A finished run of a tiny model, and what its steps were."""

    run: Run
    rates: list[float] = field(default_factory=list)
    """Learning rate of each step."""
    losses: list[float] = field(default_factory=list)
    """Loss that each step minimised."""
    weights: list[dict[str, Any]] = field(default_factory=list)
    """Parameters before each step, and after the last."""
    gradients: list[dict[str, Any]] = field(default_factory=list)
    """Gradients that the optimiser got."""
    batches: list[Any] = field(default_factory=list)
    """`Step` of each step."""

    def validations(self, name: str = "val_loss") -> dict[int, float]:
        """A measurement of each validation, by step."""
        return {line["step"]: line[name] for line in self.run.metrics if name in line}


class TinyFit(Protocol):
    """`fit` on 24 training and 6 validation rows with short steps; options as for `lightning_ft.fit`."""

    def __call__(self, *, watched: bool = True, **options: Any) -> Trajectory: ...


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, a tiny GPT-2, and two files of rows."""
    from lightning_ft.testing.models import FAMILIES, tiny_backbone_folder

    folder = tmp_path_factory.mktemp("tiny")
    for family in FAMILIES:
        tiny_backbone_folder(folder / family, family)
    for name, numbers in (("rows", range(30)), ("more", range(30, 50))):
        rows = [
            {"instruction": f"Where is order {n}?", "output": f"In city {n % 7}." * (n % 3 + 1),
             "split": "train" if n % 5 else "validation"}
            for n in numbers
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def tiny_fit(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyFit:
    """Runs as from Python, each in a folder of its own."""
    import lightning.pytorch as L

    from lightning_ft import fit

    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tiny_folder / "cache"))
    monkeypatch.chdir(tmp_path)

    class Watch(L.Callback):
        def __init__(self, seen: Trajectory) -> None:
            self.seen = seen

        def weights(self, module: Any) -> dict[str, Any]:
            return {name: p.detach().clone() for name, p in module.model.named_parameters() if p.requires_grad}

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.seen.weights.append(self.weights(pl_module))
            self.seen.batches.append(batch)

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.seen.rates.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            named = pl_module.model.named_parameters()
            self.seen.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
            self.seen.losses.append(float(pl_module.step_loss))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.seen.weights.append(self.weights(pl_module))

    def call(*, watched: bool = True, **options: Any) -> Trajectory:
        seen = Trajectory(None)  # type: ignore[arg-type]  # follows
        given = {
            "model": str(tiny_folder / "llama"), "data": str(tiny_folder / "rows.jsonl"), "method": "full", "max_steps": 6,
            "epochs": 9, "batch_size": 4, "precision": "fp32", "verdict_rows": 0, "preflight": False, "packing": "off",
            "save_every": 0, "eval_every": 6, "learning_rate": 1e-3, "trainer": {"callbacks": [Watch(seen)]} if watched else {},
        }  # fmt: skip
        seen.run = fit(**{**given, **options})
        return seen

    return call
