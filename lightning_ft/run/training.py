"""The Trainer of a run: what of Lightning is used, and with which callbacks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_ft.engine.verify import verify_head
from lightning_ft.errors import UsageError
from lightning_ft.monitor import Monitor, better_of
from lightning_ft.run.callbacks import Patience, Saver, TimeLimit
from lightning_ft.run.card import ModelWriter
from lightning_ft.run.checkpoint_io import FolderCheckpoint
from lightning_ft.run.preflight import Preflight
from lightning_ft.run.quiet import quiet_libraries
from lightning_ft.run.ranks import Ranks, patience
from lightning_ft.run.recorder import Recorder
from lightning_ft.run.reference import ReferencePass
from lightning_ft.run.strategies import lightning_strategy
from lightning_ft.run.trainer_arguments import trainer_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_ft.data.datamodule import FineTuneData
    from lightning_ft.module import FineTuner
    from lightning_ft.run.session import Session


class HeadCheck(L.Callback):
    """Compares the way of the loss with the full logits where a model has come to lie in several processes.

    Elsewhere that is done before the Trainer begins.

    Args:
        data: Has a batch for it.
        say: Prints a line.
    """

    def __init__(self, data: FineTuneData, say: Callable[[str], None]) -> None:
        self.data, self.say = data, say

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do it, all processes together."""
        module: FineTuner = pl_module  # type: ignore[assignment]  # the only module that is trained with this callback
        if module.shards is not None:
            batch = self.data.build(0, module.data_place[0]).micro[0].to(module.device)
            self.say(f"loss: {verify_head(module.model, batch, computes_in=module.gathered_in)}")


def make_trainer(session: Session, precision: str) -> L.Trainer:
    """The Trainer; the session gets its `saver`, `ranks` and `writer`.

    Args:
        session: With everything else that is built.
        precision: Lightning's name for the arithmetic.
    """
    config, path, total, world = session.config, session.folder.path, session.total_steps, session.world
    bar = sys.stderr.isatty() and world.main
    session.ranks = Ranks(patience(session.config.rank_timeout), session.folder)
    monitor = Monitor.of(config.monitor, config.monitor_mode, better_of(session.choices.objective))
    session.saver = Saver(config, session.folder, total, monitor, validates=session.data.has_validation)
    callbacks: list[Callback] = [
        Recorder(config, session.data.stream or session.schedule, session.folder.metrics, None if bar else session.say),
    ]
    if config.preflight:
        callbacks.insert(0, Preflight(session.data, path, config.save_every, session.estimated))
    if session.choices.objective.reference:
        callbacks.insert(0, ReferencePass(session.data, path, session.say))  # the preflight's steps need it
    callbacks.insert(0, HeadCheck(session.data, session.say))
    if config.early_stopping:
        # Before the Saver, so that its decision is in the checkpoint of the same step.
        callbacks.insert(0, Patience(config, monitor, session.say))
    callbacks.insert(0, session.ranks)  # whoever is lost from here on is named
    if bar:
        callbacks.append(RichProgressBar())
    texts = session.texts
    session.writer = ModelWriter(
        lambda: session.module.model, texts.tokenizer, texts.template, config, session.facts(), session.spec.quantization
    )
    strategy = lightning_strategy(config, world, in_turns=session.choices.method.trains_in_turns)
    options: dict[str, Any] = {
        "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "devices": world.devices, "strategy": strategy, "precision": precision,
        "num_nodes": 1 if session.cluster else world.size // world.on_machine,
        "max_epochs": 1, "max_steps": total, "use_distributed_sampler": False, "num_sanity_val_steps": 0,
        "val_check_interval": session.eval_every, "check_val_every_n_epoch": None,
        "limit_val_batches": 1.0 if session.data.has_validation else 0, "enable_checkpointing": False,
        "enable_model_summary": False, "enable_progress_bar": bar, "log_every_n_steps": 1,
        "logger": TensorBoardLogger(str(path), name="logs", version="") if world.main else False,
        "plugins": [FolderCheckpoint(session.writer, behind=config.save_behind)], "default_root_dir": str(path),
    }  # fmt: skip
    extra = trainer_arguments(config.trainer) if config.trainer else {}
    callbacks += extra.pop("callbacks", None) or []
    if (limit := extra.pop("max_time", None)) is not None:
        callbacks.append(time_limit(limit))
    callbacks.append(session.saver)  # the last, so that what the others do in a step is in its checkpoint
    options["plugins"] += [*([session.cluster] if session.cluster else []), *(extra.pop("plugins", None) or [])]
    with quiet_libraries():
        trainer = L.Trainer(callbacks=callbacks, **(options | extra))
    leave_signals_to_us(trainer)
    return trainer


def end_children(trainer: L.Trainer, number: int) -> None:
    """Hand a signal on to the processes that Lightning has started; whoever else starts processes does that himself."""
    launcher: Any = trainer.strategy.launcher
    if hasattr(launcher, "kill"):
        launcher.kill(number)


def time_limit(duration: Any) -> TimeLimit:
    """The callback for `max_time`.

    Raises:
        UsageError: it is no time.
    """
    try:
        return TimeLimit(duration)
    except MisconfigurationException as error:
        raise UsageError(
            f"Expected --trainer.max_time as DD:HH:MM:SS, as 00:08:00:00 for eight hours; got {duration}."
        ) from error


def leave_signals_to_us(trainer: L.Trainer) -> None:
    """Keep Lightning's own handlers away.

    On a SIGTERM they talk to the other ranks in the middle of whatever these talk about, and on SLURM's signal they save and
    queue the job again by themselves. Before every step all ranks would wait for their GPUs to ask whether there was one.
    """
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None
