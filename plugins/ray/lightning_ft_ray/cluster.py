"""The cluster: one of this machine's own, which nobody else can reach, or one that runs already."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import socket
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import LightningFTError, TrainingError, UsageError
from lightning_ft_ray.machines import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
REACHED = 5.0
"""Seconds within which the port of a cluster has to answer."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what we print is for the user, not for Ray's log
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers work in the driver's folder
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody asks for them where there is no dashboard
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a machine that is taken away is a lost worker
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray's own lines would stand among the results on stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers that are to see no GPU are told so by us
}
"""Settings of Ray and Ray Train, where the user has none of his own."""


def check_address(address: str) -> None:
    """Refuse an address that cannot be one, or where nobody answers, before anything slow is imported.

    Raises:
        UsageError: it is so.
    """
    if address in ("local", "auto"):
        return
    found = re.fullmatch(r"(?P<host>[^\s/:]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})", address)
    if found is None:
        raise UsageError(f"Expected --address to be local, auto, or host:port of a running cluster; got '{address}'.")
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=REACHED).close()
    except (OSError, OverflowError) as error:
        why = f"nothing answered within {REACHED:g} seconds" if isinstance(error, TimeoutError) else error
        raise UsageError(
            f"Expected a Ray cluster at --address {address}, but {why}; type the address that `ray start --head` printed."
        ) from None


@contextlib.contextmanager
def cluster(address: str) -> Iterator[list[Machine]]:
    """Within it this process belongs to a cluster, whose machines it gives.

    Args:
        address: `local` starts one for the time of the block; `auto` and `host:port` join one that runs.

    Raises:
        UsageError: there is none, or it cannot be joined. TrainingError: Ray could not start one, or not where it should.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    arguments: dict[str, Any] = {"configure_logging": True, "logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        arguments |= _own()
    else:
        arguments["address"] = address
    ray = _imported()
    try:
        try:
            ray.init(**arguments)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _not_joined(address, error) from error
        if address == "local" and ray.util.get_node_ip_address() != LOOPBACK:
            raise TrainingError(f"Expected Ray to stay on {LOOPBACK}, got {ray.util.get_node_ip_address()}; nothing was run.")
        yield [
            Machine(node["NodeID"], node["NodeManagerAddress"], *(node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU")))
            for node in ray.nodes()
            if node["Alive"]
        ]
    finally:
        ray.shutdown()


def _own() -> dict[str, Any]:
    """Arguments and settings of a cluster that listens on the loopback interface alone, without a dashboard.

    Ray takes 127.0.0.1 for a name of the machine's outer address unless it is told, before it is imported, that there is no
    cluster but on this machine. The token keeps other users of the machine out; it is this cluster's own.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return {"address": "local", "include_dashboard": False, "_node_ip_address": LOOPBACK}


def check_installed() -> None:
    """Refuse where Ray is missing; does not import it, which has to wait for the settings of a cluster.

    Raises:
        UsageError: it is.
    """
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:  # without a file it is somebody's folder of that name
        raise _missing("it is not installed")


def _imported() -> Any:
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise _missing(" ".join(str(error).split()).rstrip(".")) from error
    return ray


def _missing(why: str) -> UsageError:
    return UsageError(
        f"Expected Ray with Ray Train, but {why}; type pip install 'ray[train]', or use `lightning-ft fit` without it."
    )


def _not_joined(address: str, error: Exception) -> LightningFTError:
    why = " ".join(str(error).split()).rstrip(".")
    if address == "local":
        return TrainingError(f"Ray could not start a cluster on this machine: {why}.")
    return UsageError(
        f"Expected a running Ray cluster that this machine belongs to at --address {address}, but {why}; start one with "
        "`ray start --head`, or leave --address out."
    )
