"""Errors for people: one sentence each, and the exit code that the command line gives for it."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


class LightningFTError(Exception):
    """Base of everything that is reported as one sentence instead of a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(LightningFTError, ValueError):
    """Wrong flags, wrong config, wrong input (exit code 2)."""

    exit_code = 2


class DataError(UsageError):
    """A data file that cannot be used; the message begins with `file:line`."""


class RefusedRowError(ValueError):
    """What a task refuses in a row, for those who sort refusals; `Task.format` may as well raise a plain ValueError.

    Attributes:
        kind: `empty_prompt`, `empty_answer` or `turns`.
    """

    def __init__(self, message: str, kind: Literal["empty_prompt", "empty_answer", "turns"]) -> None:
        super().__init__(message)
        self.kind = kind


class PluginError(UsageError):
    """A plugin that cannot be loaded or breaks the contract."""


class NotMergeableError(UsageError):
    """The method's weights cannot be folded into the base weights."""


class TrainingError(LightningFTError):
    """The run itself failed: NaN, lost rank, disk full (exit code 1)."""


class LostRankError(TrainingError):
    """Another process of the run is gone; whoever started the processes may start them again.

    Attributes:
        said: Which one, without what to type.
    """

    def __init__(self, said: str, go_on: str = "") -> None:
        super().__init__(f"{said} {go_on}".strip())
        self.said = said


class CheckFailedError(LightningFTError):
    """A check that was asked for said no (exit code 3)."""

    exit_code = 3


class RunInterruptedError(LightningFTError):
    """A signal stopped the run after a checkpoint was saved (exit code 128 + signal)."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class NoMemoryError(TrainingError):
    """What is left to say where nothing can be made smaller any more (exit code 1).

    Attributes:
        whole: Whether all ranks stand at the end of the last step, so that it can be saved.
    """

    def __init__(self, message: str, *, whole: bool) -> None:
        super().__init__(message)
        self.whole = whole


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on a CPU torch has only a sentence for that."""
    import torch

    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError, NoMemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` (with a leading space) for the nearest known name, or an empty string.

    Nearest are names that begin so, as `learn` is rather half of `learning_rate` than a slip of `lr_min`.
    """
    options = {option.lower(): option for option in known}
    begun = [option for option in options if len(name) > 3 and option.startswith(name.lower())]
    close = difflib.get_close_matches(name.lower(), begun or options, n=1, cutoff=0.0 if begun else 0.6)
    return f" Did you mean '{options[close[0]]}'?" if close else ""


def json_name(value: Any) -> str:
    """What people who write JSON call the type of a value."""
    if value is None or value == []:
        return "null" if value is None else "an empty list"
    return _JSON_NAMES.get(type(value), type(value).__name__)


def json_name_of(values: Mapping[str, Any], key: str) -> str:
    """As `json_name`, of the value under a key; `nothing` where there is none."""
    return json_name(values[key]) if key in values else "nothing"
