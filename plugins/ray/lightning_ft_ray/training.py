"""Ray Train's part of a run: it starts the workers, watches them and starts them again; and what its failures mean."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightning_ft.run.heap import TUNABLES, without_cache
from lightning_ft_ray.desk import Ending, WorkerError

if TYPE_CHECKING:
    from lightning_ft_ray.desk import Order
    from lightning_ft_ray.machines import Group

FORWARDED = ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG")


def environment(group: Group) -> dict[str, str]:
    """Settings for the workers: those of the driver that count on other machines, too (secrets are none), and which GPUs."""
    own = {name: value for name, value in os.environ.items() if name.startswith("LIGHTNING_FT_") and name != "LIGHTNING_FT_RUN"}
    own |= {name: os.environ[name] for name in FORWARDED if name in os.environ}
    # The heap of `fit`, which begins its process anew for it.
    return own if group.gpu else own | {"CUDA_VISIBLE_DEVICES": "", TUNABLES: without_cache(os.environ)}


def fit(order: Order, desk: Any) -> Exception | None:
    """Run Ray Train to its end.

    Args:
        order: What the workers are to do.
        desk: The handle of the `Desk`.

    Returns:
        What it failed by.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from lightning_ft_ray.worker import train

    group = order.group
    try:
        TorchTrainer(
            train,
            train_loop_config={"order": order, "desk": desk},
            scaling_config=ScalingConfig(
                num_workers=group.workers, use_gpu=group.gpu, resources_per_worker=group.resources
            ),
            run_config=RunConfig(
                name="fit", storage_path=order.storage, failure_config=FailureConfig(max_failures=order.tries - 1),
                worker_runtime_env={"env_vars": order.environment},
            ),
        ).fit()  # fmt: skip
    except Exception as error:
        return error
    return None


def lost(error: Exception | None, folder: str | None, tries: int) -> Ending:
    """The end of a run of which no worker could tell how it ended.

    Args:
        error: What Ray Train failed by.
        folder: The run folder, as far as it is known.
        tries: How often the workers were started.
    """
    from ray.train import WorkerGroupError

    go_on = "" if folder is None else f" Go on with --resume {folder}{', or let Ray do so with --tries 3' * (tries == 1)}."
    if not isinstance(error, WorkerGroupError):
        return Ending(message=f"Ray Train: {_short(str(error or 'it returned too early'))}.{go_on}", code=1, trace=repr(error))
    own = {rank: failure for rank, failure in error.worker_failures.items() if isinstance(failure, WorkerError)}
    gone = sorted(error.worker_failures.keys() - own.keys())
    if gone:
        which = f"worker{'s' * (len(gone) > 1)} {', '.join(map(str, gone))}"
        message = f"Lost {which}: the process has ended, or the machine does not answer.{go_on}"
        return Ending(message=message, code=1, trace=str(error))
    rank, failure = min(own.items())
    return Ending(message=f"Worker {rank}: {_short(failure.said)}.{go_on}", code=1, trace=failure.trace)


def _short(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".")
