"""From names and plain values in a config to instances of the registered classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lightning_ft.config import TrainingConfig
    from lightning_ft.method import Method
    from lightning_ft.objective import Objective
    from lightning_ft.registry import Registry
    from lightning_ft.task import Task


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
    """Instances of everything that the config names, and the names written back into it, so that the record is complete.

    Raises:
        UsageError: an unknown name, option or value; with a suggestion.
    """
    method = _instance("method", config.method, registry)
    objective = _instance("objective", config.objective, registry)
    task = None if config.task in (None, "auto") else _instance("task", config.task, registry)
    name, options = _split("optimizer", config.optimizer)
    optimizer = registry.optimizers[name or "AdamW"].cls
    config.method, config.objective = method, objective
    return Choices(method, objective, task, optimizer, options)


def _split(kind: str, value: Any) -> tuple[str | None, dict[str, Any]]:
    """Name and options of a choice in plain values."""
    if value is None or isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping):
        options = dict(value)
        return options.pop("name", None), options
    raise UsageError(f"Expected --{kind} to be a name or {{name: ..., option: value}}; got {value!r}.")


def _instance(kind: str, value: Any, registry: Registry) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return value
    name, options = _split(kind, value)
    entry = registry[kind].default() if name is None else registry[kind][name]
    known = [f.name for f in dataclasses.fields(entry.cls)]
    for option in options:
        if option not in known:
            have = ", ".join(known) or "none"
            raise UsageError(
                f"Expected an option of {kind} {entry.name} ({have}), got '{option}'.{did_you_mean(option, known)}"
            )
    try:
        return entry.cls(**options)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} {entry.name}: {error}") from error
