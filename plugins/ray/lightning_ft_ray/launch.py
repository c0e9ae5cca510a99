"""The driver's part of a run: it sets up the desk, prints what rank 0 says, and passes signals on."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import TrainingError
from lightning_ft.run import signals
from lightning_ft.run.quiet import say
from lightning_ft_ray.cluster import QUIET
from lightning_ft_ray.desk import Desk, Ending

if TYPE_CHECKING:
    from lightning_ft_ray.desk import Order
    from lightning_ft_ray.machines import Group

LOOK = 0.3
"""Seconds between two looks at the desk."""
LEAVE = 15.0
"""Seconds that Ray Train has to put its things away on a cluster that stays."""


def launch(order: Order, *, stays: bool) -> Ending:
    """Run an order on the cluster that this process belongs to.

    Args:
        order: What to do.
        stays: Whether the cluster is still there after the run.

    Raises:
        LightningFTError: the run failed, as `fit` would have.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    _say_if_busy(order.group)
    # Ray Train runs in the desk's process: a thread of this one that waited for it would, when the connection is closed, take
    # the process down.
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    maker: Any = ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": QUIET})(Desk)
    asked: list[int] = []
    handlers = signals.install(lambda number, frame: _note(asked, number))
    try:
        desk = maker.remote(order.tries)
        desk.start.remote(order)
        ending = _follow(desk, asked)
        until = time.monotonic() + LEAVE
        while stays and time.monotonic() < until and not ray.get(desk.over.remote()):
            time.sleep(LOOK)
    except ray.exceptions.RayActorError as error:
        raise TrainingError("Lost the process that Ray Train ran in; look at the memory of this machine.") from error
    finally:
        signals.restore(handlers)
    ending.check()
    return ending


def _say_if_busy(group: Group) -> None:
    """Tell why nothing happens where others use the cluster."""
    import ray

    free = ray.available_resources()
    for kind, each in group.resources.items():
        if free.get(kind, 0.0) < each * group.workers:
            say(f"ray: waiting for {each * group.workers:g} {kind}s, of which {free.get(kind, 0.0):g} are free at the moment")


def _note(asked: list[int], number: int) -> None:
    """The first signal lets the step end and save, the second does not."""
    if asked:
        signals.stop_at_once(number)
    asked.append(number)


def _follow(desk: Any, asked: list[int]) -> Ending:
    """Print what is said until the run has ended."""
    import ray

    told = False
    while True:
        if asked and not told:
            told = True
            ray.get(desk.stop.remote(asked[0]))
            say(f"ray: {signal.Signals(asked[0]).name}: the step ends and is saved; a second one stops at once")
        lines, ending = ray.get(desk.news.remote())
        for stream, text in lines:
            print(text, end="", file=getattr(sys, stream), flush=True)
        if ending is not None:
            return ending  # type: ignore[no-any-return]  # an actor's methods are typed by no one
        time.sleep(LOOK)
