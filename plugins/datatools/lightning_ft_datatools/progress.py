"""A bar for work that has several steps."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Progress:
    """Shows on a terminal which of a number of steps is at work; elsewhere nothing.

    Args:
        steps: How many steps there will be.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: Any = None
        self._task: Any = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Progress]:
        """Within the block the bar is on the screen."""
        if not sys.stderr.isatty():
            yield self
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (SpinnerColumn(), TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as self._bar:
            self._task = self._bar.add_task("", total=self._steps)
            yield self
        self._bar = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step, by its name."""
        if self._bar:
            self._bar.update(self._task, description=name)
        yield
        if self._bar:
            self._bar.advance(self._task)
