"""One worker's part of a run: Ray Train calls `train` in every process of the group, which is then a rank of `fit`.

Other processes import this module, too, as a name for what it does; so it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import LightningFTError, LostRankError, RunInterruptedError, UsageError
from lightning_ft.run import signals
from lightning_ft_ray.desk import Ending, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning_ft_ray.desk import Order, Stream

LOOK = 1.0
"""Seconds between two looks at the desk."""
GRACE = 10.0
"""Seconds that rank 0 has to come to the same end as another rank."""


def train(job: Mapping[str, Any]) -> None:
    """Run this rank and tell the desk how it ended.

    An error of ours (wrong input, a loss that is not a number, a signal) is the end. A lost rank, seen by those beside it, and
    every other error is raised, as Ray starts the workers again for it.

    Args:
        job: `order`, an `Order`; `desk`, the handle of the `Desk`.
    """
    import ray
    import ray.train

    order: Order = job["order"]
    desk = job["desk"]
    main = ray.train.get_context().get_world_rank() == 0
    before, ended = _same_for_all(ray.get(desk.begin.remote()) if main else None)
    if ended:
        return
    # What torchrun would say beside the ranks that Ray Train has set: that there is a launcher.
    os.environ["TORCHELASTIC_RUN_ID"] = "ray"
    os.environ.pop("LIGHTNING_FT_RUN", None)
    try:
        ending = _run(order, before, desk, main=main)
    except LostRankError as error:
        raise WorkerError(error.said, traceback.format_exc()) from None
    except LightningFTError as error:
        if not main and _ended(desk):
            return
        ray.get(desk.end.remote(Ending.of(error)))
        # The others may wait for this rank; that it has failed is how Ray comes to end them.
        raise WorkerError(str(error), traceback.format_exc()) from None
    except Exception as error:
        raise WorkerError(f"{type(error).__name__}: {error}", traceback.format_exc()) from None
    if main:
        ray.get(desk.end.remote(ending))


def _same_for_all(found: Any) -> Any:
    """Rank 0's object, on every rank."""
    import torch

    holder = [found]
    torch.distributed.broadcast_object_list(holder)
    return holder[0]


def _ended(desk: Any) -> bool:
    """Whether rank 0 ends by itself, too: it is the one that has a run folder to leave in order."""
    import ray

    for _ in range(round(GRACE / LOOK)):
        time.sleep(LOOK)
        if ray.get(desk.ended.remote()):
            return True
    return False


def _run(order: Order, before: str | None, desk: Any, *, main: bool) -> Ending:
    """`fit` in the driver's folder; `before` is the run folder of a try before this one."""
    from ray.train.lightning import RayLightningEnvironment

    from lightning_ft.api import fit_config

    try:
        os.chdir(order.folder)
    except OSError as error:
        raise UsageError(
            f"Expected the folder '{order.folder}' on every machine of the cluster, but {os.uname().nodename} says: "
            f"{error.strerror}; work in a folder that all of them share."
        ) from None
    if before is not None:
        order.config.resume = before
    with contextlib.ExitStack() as stack:
        if main:
            out, err = Relay(desk, "stdout"), Relay(desk, "stderr")
            stack.callback(out.rest)
            stack.callback(err.rest)
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.enter_context(_listening(desk))
        run = fit_config(order.config, given=order.given, cluster=RayLightningEnvironment())
    return Ending(str(run.folder), run.verdict)


class Relay(io.TextIOBase):
    """A text stream that ends in the driver's terminal.

    Args:
        desk: Where lines are handed in.
        stream: Which stream of the driver it stands for.
    """

    def __init__(self, desk: Any, stream: Stream) -> None:
        self._desk, self._stream = desk, stream
        self._line = ""

    def write(self, text: str) -> int:
        """Hand in what has become a line."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._hand_in(whole + newline)
        return len(text)

    def rest(self) -> None:
        """Hand in the last line, though it has no end."""
        if self._line:
            self.write("\n")

    def writable(self) -> bool:
        """Yes."""
        return True

    def _hand_in(self, text: str) -> None:
        self._desk.say.remote(self._stream, text, os.environ.get("LIGHTNING_FT_RUN"))


@contextlib.contextmanager
def _listening(desk: Any) -> Iterator[None]:
    """Within it a signal that the driver got reaches this rank, and by it the others."""
    import ray

    over = threading.Event()

    def listen() -> None:
        while not over.wait(LOOK):
            number = ray.get(desk.wish.remote())
            if number is None:
                continue
            try:
                if signals.deliver(number):
                    return
            except RunInterruptedError as error:  # no step is running that could be ended
                desk.end.remote(Ending.of(error))
                return

    thread = threading.Thread(target=listen, daemon=True, name="listening")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
