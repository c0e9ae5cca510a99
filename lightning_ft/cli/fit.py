"""`fit`, `validate`, `test` and `predict`: phase one without torch, then Lightning's parser, then the run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.early import look
from lightning_ft.cli.resolve import Request, check_torch_names, parse, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.bootstrap import Verdict
    from lightning_ft.config import TrainingConfig


def fit(argv: Sequence[str]) -> int:
    """Fine-tune."""
    return _stage("fit", argv)


def validate(argv: Sequence[str]) -> int:
    """Likelihood metrics on the validation split."""
    return _stage("validate", argv)


def test(argv: Sequence[str]) -> int:
    """Likelihood metrics on the test split."""
    return _stage("test", argv)


def predict(argv: Sequence[str]) -> int:
    """Answers to the test split."""
    return _stage("predict", argv)


def _stage(stage: str, argv: Sequence[str]) -> int:
    arguments = parse(argv)
    if "help" in arguments.switches:
        from lightning_ft import plugins
        from lightning_ft.cli.help import fit_help
        from lightning_ft.registry import Registry

        # A broken plugin must not keep anybody from reading how to switch it off.
        registry = Registry(*plugins.load(tolerant=True))
        request = resolve(arguments, stage=stage, complete=False) if _names_something(arguments) else Request({}, frozenset())
        if "optimizer" in request.given:
            check_torch_names(request)  # an optimiser's options are read from a class that needs torch
        print(fit_help(stage, request, registry, everything=arguments.switches["help"] == "all"))
        return 0
    request = resolve(arguments, stage=stage)
    if "print_config" in arguments.switches:
        print_config(request)
        return 0
    look(request.config().model, request.config().data)
    check_torch_names(request)
    from lightning_ft.cli.lightning import TrainerCLI

    TrainerCLI(stage, request, lambda config: _run(stage, config, request.given))
    return 0


def _names_something(arguments: Any) -> bool:
    return bool(arguments.configs or arguments.layer.sections)


def print_config(request: Request) -> None:
    """The whole config as YAML, as `config.yaml` of the run would have it."""
    import yaml

    check_torch_names(request)
    yaml.safe_dump(request.config().as_dict(), sys.stdout, sort_keys=False, allow_unicode=True)


def _run(stage: str, config: TrainingConfig, given: frozenset[str]) -> None:
    """Hand over to the Python interface, and say where the result is."""
    from lightning_ft import api
    from lightning_ft.run.world import world

    if stage == "fit":
        run = api.fit_config(config, given=given)
        if world(config).main:
            show_verdict(run.verdict)
            print(f"Run folder: {run.folder}")
        return
    show_result(api.run_stage(config, stage))


def show_verdict(verdict: Verdict | None) -> None:
    """Base against tuned, as a table and a sentence."""
    if verdict is None:
        return
    from rich.console import Console

    console = Console()
    # Piped, rich would take 80 columns and fold the table.
    (console if console.is_terminal else Console(width=140)).print(verdict.table())
    print(verdict.sentence())
    for sign in verdict.signs:
        print(f"sign of trouble: {sign.sentence()}")


def show_result(result: Mapping[str, Any]) -> None:
    """A table of the numbers, then the paths."""
    numbers = {k: v for k, v in result.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if numbers:
        from lightning_ft.cli.tables import print_metrics

        print_metrics(numbers)
    for key, value in result.items():
        if key not in numbers and value is not None:
            print(f"{str(key).replace('_', ' ').capitalize()}: {value}")
