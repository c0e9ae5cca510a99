"""Which measurement of a validation decides, and which way it is better: `keep_best`, `best_model` and early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.ledger import Ledger
    from lightning_ft.objective import Objective

Mode = Literal["auto", "min", "max"]
LOSS, TOKEN_ACCURACY = "val_loss", "val_token_accuracy"
BETTER: dict[str, Literal["min", "max"]] = {LOSS: "min", TOKEN_ACCURACY: "max"}
"""What every validation measures, and which way each is better."""
MOST_SOURCES = 20
"""Files whose validation loss is told apart."""


def measured(name: str) -> str:
    """Name of the mean, in a validation, of what an objective logs."""
    return f"val_{name}"


def measured_in_training(name: str) -> str:
    """What `measured` made that name of; any other name is its own."""
    return name.removeprefix(measured(""))


def of_source(source: str) -> str:
    """Name of the validation loss of one file."""
    return f"{LOSS}/{source}"


@dataclass(frozen=True)
class Monitor:
    """What is looked at, and which way it is better."""

    name: str
    mode: Literal["min", "max"]

    @classmethod
    def of(cls, name: str, mode: Mode, better: Mapping[str, Literal["min", "max"]] = BETTER) -> Monitor:
        """With the direction of `auto` filled in; `check_monitor` has seen to it that there is one."""
        return cls(name, better[name.partition("/")[0]] if mode == "auto" else mode)

    def rank(self, score: float) -> tuple[bool, float]:
        """Sorts scores from best to worst; what is not a number is worst."""
        return math.isnan(score), score if self.mode == "min" else -score


def better_of(objective: Objective) -> Mapping[str, Literal["min", "max"]]:
    """What a validation of an objective measures, and which way each is better."""
    return {LOSS: "min", **{measured(name): way for name, way in objective.measures.items()}} if objective.measures else BETTER


def told_apart(ledger: Ledger) -> tuple[str, ...]:
    """The files whose validation loss is told apart; none where there is one, or more than anybody looks at."""
    found = tuple(name for name, counts in ledger.sources.items() if counts.validation)
    return found if 1 < len(found) <= MOST_SOURCES else ()


def check_monitor(
    config: TrainingConfig, known: Iterable[str] = (), better: Mapping[str, Literal["min", "max"]] = BETTER
) -> None:
    """Refuse a name that no validation will measure, or whose direction nobody knows.

    Args:
        config: The run's options; callbacks of the user's may measure anything.
        known: What the validation of its data measures; empty: the data have not been read yet.
        better: What a validation measures of all data, and which way each is better.

    Raises:
        UsageError: it is such a name.
    """
    name, names = config.monitor, list(known) or [*better, of_source("FILE")]
    ours = name in names or (not known and name.startswith(of_source("")))
    if not ours and not config.trainer.get("callbacks"):
        hint = did_you_mean(name, names)
        raise UsageError(f"Expected --monitor to be what a validation measures ({', '.join(names)}); got '{name}'.{hint}")
    if name.partition("/")[0] not in better and config.monitor_mode == "auto":
        raise UsageError(f"Expected --monitor_mode min or max with --monitor {name}, whose direction is not known; got auto.")


def check_measured(config: TrainingConfig, objective: Objective, sources: Iterable[str], *, validates: bool) -> None:
    """Refuse what the validation of these data will not measure.

    Args:
        config: The run's options.
        objective: What is minimised.
        sources: Files whose loss is told apart.
        validates: Whether there are validation rows.

    Raises:
        UsageError: there is nothing that `monitor` or `early_stopping` could look at.
    """
    for name in ("monitor", "early_stopping"):
        if not validates and getattr(config, name) != getattr(type(config), name):
            raise UsageError(f"Expected validation rows for --{name}, got none; look at --split, or name --val_data FILE.")
    better = better_of(objective)
    check_monitor(config, [*better, *map(of_source, sources)], better)
