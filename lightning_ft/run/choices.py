"""From names and plain values in a config to instances of the registered classes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft.method import Method
from lightning_ft.monitor import better_of, check_monitor
from lightning_ft.objective import Objective
from lightning_ft.task import Task

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lightning_ft.config import TrainingConfig
    from lightning_ft.registry import Entry, Registry

CONTRACTS: Mapping[str, type] = {"method": Method, "objective": Objective, "task": Task}
EVERYDAY = {"params": "method", "lr": "learning_rate", "weight_decay": "weight_decay"}
"""Arguments of optimisers that other options decide."""


@dataclass(frozen=True)
class Choices:
    """What a config names."""

    method: Method
    objective: Objective
    task: Task | None
    """None: decided by the data's columns."""
    optimizer: type[Optimizer]
    optimizer_options: Mapping[str, Any]


def choose(config: TrainingConfig, registry: Registry) -> Choices:
    """Instances of everything that the config names, written back into it, so that the record is complete.

    Raises:
        UsageError: an unknown name, option or value; with a suggestion.
    """
    method = instance("method", config.method, registry)
    objective = instance("objective", config.objective, registry)
    check_monitor(config, better=better_of(objective))
    if config.label_smoothing and not objective.smooths():
        own = hasattr(objective, "label_smoothing")
        raise UsageError(
            f"Expected --objective to be one that smooths labels with --label_smoothing, got {objective.name}, which does not; "
            f"{'type --objective.label_smoothing, which is another thing, or ' if own else ''}leave --label_smoothing out."
        )
    if objective.reference and config.stream is not None:
        raise UsageError(
            f"Expected no --stream with --objective {objective.name}, which needs what the model makes of all rows before the "
            "first step; leave --stream out."
        )
    task = None if config.task in (None, "auto") else instance("task", config.task, registry)
    name, options = _split("optimizer", config.optimizer)
    optimizer = registry.optimizers[name or "AdamW"]
    _check_options("optimizer", optimizer, options, _arguments(optimizer.cls))
    config.method, config.objective, config.optimizer = method, objective, {"name": optimizer.name, **options}
    return Choices(method, objective, task, optimizer.cls, options)


def take_defaults(config: TrainingConfig, task: Task | None, given: Collection[str]) -> None:
    """Write the defaults of a task that was named into a config, but where the user has given a value."""
    for name, value in type(task).defaults.items() if task is not None else ():
        if name not in given:
            setattr(config, name, value)


def _split(kind: str, value: Any) -> tuple[str | None, dict[str, Any]]:
    """Name and options of a choice in plain values."""
    if value is None or isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping):
        options = dict(value)
        name = options.pop("name", None)
        if name is None or isinstance(name, str):
            return name, options
    raise UsageError(f"Expected --{kind} to be a name or {{name: ..., option: value}}; got {value!r}.")


def _arguments(optimizer: type[Optimizer]) -> list[str] | None:
    """Names of the options of an optimiser; None: any."""
    parameters = list(inspect.signature(optimizer.__init__).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.name not in EVERYDAY]


def _check_options(kind: str, entry: Entry, options: Mapping[str, Any], known: list[str] | None) -> None:
    for option in options:
        if kind == "optimizer" and option in EVERYDAY:
            raise UsageError(f"Expected --{EVERYDAY[option]} in place of the option '{option}' of {kind} {entry.name}.")
        if known is not None and option not in known:
            have = ", ".join(known) or "none"
            raise UsageError(
                f"Expected an option of {kind} {entry.name} ({have}), got '{option}'.{did_you_mean(option, known)}"
            )


def instance(kind: str, value: Any, registry: Registry) -> Any:
    """The method, objective or task that a name, a mapping with options, or an instance stands for.

    Raises:
        UsageError: an unknown name, option or value; with a suggestion.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not isinstance(value, CONTRACTS[kind]):
            raise UsageError(f"Expected --{kind} to be an instance of {CONTRACTS[kind].__name__}, got {type(value).__name__}.")
        return value
    name, options = _split(kind, value)
    entry = registry[kind].default() if name is None else registry[kind][name]
    _check_options(kind, entry, options, [f.name for f in dataclasses.fields(entry.cls)])
    try:
        return entry.cls(**options)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} {entry.name}: {error}") from error
