"""Phase two: Lightning's own parser, for the Trainer's arguments. Importing this module imports Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_ft.run.trainer_arguments import check_trainer_names
from lightning_ft.run.trainer_parser import Parser, one_sentence
from lightning_ft.run.trainer_words import DECIDED

if TYPE_CHECKING:
    from lightning_ft.cli.resolve import Request
    from lightning_ft.config import TrainingConfig


class TrainerCLI(LightningCLI):
    """LightningCLI over a `Request`: it checks the Trainer's arguments and hands the config on.

    Args:
        stage: `fit`, `validate`, `test` or `predict`.
        request: the checked values of phase one.
        run: called with the final config.
    """

    def __init__(self, stage: str, request: Request, run: Callable[[TrainingConfig], Any]) -> None:
        check_trainer_names(request.trainer)
        self.request, self.run = request, run
        argv, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns about flags that it was not given
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                args={"subcommand": stage, stage: {"trainer": request.trainer}},
                parser_class=Parser,
                parser_kwargs={"prog": "lightning-ft"},
                save_config_callback=None,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        finally:
            sys.argv = argv
        self.run(self.checked)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The Trainer's arguments; phase one has read all others, and there is no model class to choose."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's hyper-parameters override the command line, silently."""

    def instantiate_classes(self) -> None:
        """Take the checked arguments; the run itself makes model, data and Trainer."""
        checked = self.config[str(self.subcommand)].trainer
        self.checked = self.request.config({key: _plain(checked[key]) for key in self.request.trainer})

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: the run starts when LightningCLI is done, with sys.argv as launchers of further ranks need it."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's own, with one-sentence errors."""
        with one_sentence():
            super().parse_arguments(parser, args)


def trainer_help() -> str:
    """Lightning's own arguments, as its parser prints them, without those that a run decides."""
    parser = Parser(prog="lightning-ft fit", usage="lightning-ft fit [--trainer.ARGUMENT VALUE ...]", add_help=False)
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False, sub_configs=True, skip=set(DECIDED))
    return parser.format_help()


def _plain(value: Any) -> Any:
    """A parsed value without jsonargparse's namespaces, ready for YAML."""
    if isinstance(value, Namespace):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
