"""Whether all machines of a cluster have what a run needs: the same packages, and the same files under the same names."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.config import TrainingConfig
    from lightning_ft_ray.machines import Machine

ANSWERED = 60.0
"""Seconds that a machine has to answer."""


@dataclass(frozen=True)
class Seen:
    """What one machine sees."""

    versions: dict[str, str]
    """Of the packages that decide a result."""
    files: dict[str, str] = field(default_factory=dict)
    """What stands at each path: a digest of the file, or of all files below the folder, or `nothing`."""


def look(folder: str, paths: Sequence[str]) -> Seen:
    """What this machine sees at some paths, relative ones from a folder."""
    from lightning_ft.data.sources import sample_digest
    from lightning_ft.run.folder import versions

    files = {}
    for name in paths:
        path = Path(folder, name)
        below = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
        whole = "".join(f"{file.relative_to(path)} {sample_digest(file)}\n" for file in below)
        digest = f"folder:{hashlib.sha256(whole.encode('utf-8', 'surrogateescape')).hexdigest()}"
        files[name] = sample_digest(path) if path.is_file() else digest if path.is_dir() else "nothing"
    return Seen(versions(), files)


def check(here: Seen, there: Seen, address: str) -> None:
    """Refuse a machine that has other packages or other files than this one.

    Raises:
        UsageError: the first difference.
    """
    for name, version in here.versions.items():
        if (other := there.versions.get(name)) != version:
            raise UsageError(
                f"Expected {name} {version} on every machine, as on this one, but {address} has {other or 'none'}; install the "
                "same there."
            )
    for name, what in here.files.items():
        if (other := there.files[name]) != what:
            got = "nothing" if other == "nothing" else "something else"
            raise UsageError(
                f"Expected every machine to see the same '{name}', but {address} sees {got} there; work in a folder that all "
                "machines share under one name."
            )


def needed(config: TrainingConfig) -> list[str]:
    """The files and folders of this machine that a run reads; hub ids, globs and built-in names are none."""
    from lightning_ft.run.resume import run_of

    names = [config.model, config.template, *config.data, *(config.val_data or ()), *(config.test_data or ())]
    if config.resume not in (None, "auto"):
        names.append(str(run_of(str(config.resume))[0] / layout.RECORD))
    return [name for name in dict.fromkeys(names) if Path(name).exists()]


@contextlib.contextmanager
def marker(config: TrainingConfig) -> Iterator[str]:
    """A file beside the run folder for the length of a `with` block: who sees it shares the place of the run."""
    place = Path(config.output).absolute().parent if config.output else Path.cwd()
    while not place.is_dir():
        place = place.parent
    path = place / f".lightning-ft-ray-{secrets.token_hex(8)}"
    try:
        path.write_text(path.name, encoding="ascii")
    except OSError as error:
        raise UsageError(f"Expected to write in '{place}', the place of the run folder, but {error.strerror}.") from None
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def survey(config: TrainingConfig, machines: Sequence[Machine]) -> None:
    """Ask every machine but this one.

    Raises:
        UsageError: one does not answer, or sees something else than this one.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mine = ray.get_runtime_context().get_node_id()
    others = [machine for machine in machines if machine.node != mine]
    if not others:
        return
    with marker(config) as mark:
        paths, folder = [mark, *needed(config)], str(Path.cwd())
        here = look(folder, paths)
        asked: list[tuple[Machine, Any]] = []
        for machine in others:
            on = NodeAffinitySchedulingStrategy(node_id=machine.node, soft=False)
            task: Any = ray.remote(num_cpus=0, scheduling_strategy=on, max_retries=0)(look)
            asked.append((machine, task.remote(folder, paths)))
        for machine, answer in asked:
            try:
                there = ray.get(answer, timeout=ANSWERED)
            except ray.exceptions.GetTimeoutError:
                raise UsageError(f"Expected {machine.address} to answer within {ANSWERED:g} seconds; it did not.") from None
            except ray.exceptions.RayError as error:
                why = " ".join(str(error).split())[-200:]
                raise UsageError(
                    f"Expected lightning-ft-ray to be installed on {machine.address}, but a task there ended so: {why}"
                ) from error
            check(here, there, machine.address)
