"""What the driver's process and Ray's workers tell one another. Everything here can be pickled, and imports little."""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lightning_ft.errors import CheckFailedError, LightningFTError, RunInterruptedError, TrainingError, UsageError

if TYPE_CHECKING:
    from lightning_ft.bootstrap import Verdict
    from lightning_ft.config import TrainingConfig
    from lightning_ft_ray.machines import Group

Stream = Literal["stdout", "stderr"]
ERRORS = {error.exit_code: error for error in (TrainingError, UsageError, CheckFailedError)}


@dataclass(frozen=True)
class Order:
    """What all workers are to do."""

    config: TrainingConfig
    given: frozenset[str]
    """Options that the user set."""
    folder: str
    """The driver's current folder, in which paths of the config are meant."""
    group: Group
    """Who they are."""
    tries: int
    """How often they are started before the run has failed; all but the first go on from the last checkpoint."""
    storage: str
    """An empty folder for Ray Train's own records; nothing of the run goes there."""
    environment: dict[str, str]
    """Variables for their processes."""


@dataclass(frozen=True)
class Ending:
    """How a run ended that nothing would be gained by starting again."""

    folder: str | None = None
    """The run folder of a run that was finished."""
    verdict: Verdict | None = None
    message: str = ""
    """The sentence of one that was not."""
    code: int = 0
    """Its exit code."""
    signum: int | None = None
    """The signal that stopped it."""
    trace: str = ""
    """Where it went wrong in a worker, for --debug."""

    @classmethod
    def of(cls, error: LightningFTError) -> Ending:
        """The end by an error of ours."""
        trace = "".join(traceback.format_exception(error))
        return cls(message=str(error), code=error.exit_code, signum=getattr(error, "signum", None), trace=trace)

    def check(self) -> None:
        """Raise the error again, in the driver.

        Raises:
            LightningFTError: of the same exit code and with the same sentence.
        """
        if self.signum is not None:
            raise RunInterruptedError(self.message, self.signum)
        if self.code:
            raise ERRORS[self.code](self.message) from (WorkerError("in a worker", self.trace) if self.trace else None)


class WorkerError(Exception):
    """Any other error of a worker, as text, for not every exception can be pickled.

    Attributes:
        said: Its type and message.
        trace: Its traceback.
    """

    def __init__(self, said: str, trace: str) -> None:
        super().__init__(said, trace)
        self.said, self.trace = said, trace

    def __str__(self) -> str:
        return f"{self.said}\n{self.trace}"


class Desk:
    """An actor that all processes of a run can reach, on the driver's machine; Ray Train runs in a thread of it.

    Args:
        tries: How often the workers are started at most.
    """

    def __init__(self, tries: int) -> None:
        self.tries, self.begun = tries, 0
        self._lines: list[tuple[Stream, str]] = []
        self._folder: str | None = None
        self._ending: Ending | None = None
        self._signal: int | None = None
        self._over = False

    # ---- for the workers ------------------------------------------------------------------------------------------------

    def begin(self) -> tuple[str | None, bool]:
        """Called by rank 0 when the workers have been started.

        Returns:
            The run folder that workers before them have opened, and whether the run has come to its end already.
        """
        self.begun += 1
        if self.begun > 1 and self._ending is None:
            self._lines.append(("stderr", f"ray: the workers were started again (try {self.begun} of {self.tries})\n"))
        return self._folder, self.ended()

    def say(self, stream: Stream, text: str, folder: str | None) -> None:
        """Something to print, and the run folder as far as it is known."""
        self._lines.append((stream, text))
        self._folder = folder or self._folder

    def end(self, ending: Ending) -> None:
        """The run has come to its end; of several ends the first counts."""
        self._ending = self._ending or ending

    def ended(self) -> bool:
        """Whether it has."""
        return self._ending is not None

    def wish(self) -> int | None:
        """The signal by which the user wants the run to stop."""
        return self._signal

    # ---- for the driver -------------------------------------------------------------------------------------------------

    def start(self, order: Order) -> None:
        """Let Ray Train begin."""
        import ray

        desk = ray.get_runtime_context().current_actor
        threading.Thread(target=self._train, args=(order, desk), daemon=True, name="ray train").start()

    def _train(self, order: Order, desk: object) -> None:
        from lightning_ft_ray.training import fit, lost

        error = fit(order, desk)
        self.end(lost(error, self._folder, self.tries))
        self._over = True

    def over(self) -> bool:
        """Whether Ray Train has put its things away, too."""
        return self._over

    def stop(self, number: int) -> None:
        """Let the run stop as that signal would."""
        self._signal = number

    def news(self) -> tuple[list[tuple[Stream, str]], Ending | None]:
        """What was said since the last call, and the end."""
        lines, self._lines = self._lines, []
        return lines, self._ending
