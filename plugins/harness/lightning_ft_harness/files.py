"""Tasks by file, folder or name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUFFIX = ".yaml"
KINDS = "Expected --harness to name files, folders or tasks of lm-eval"


def find(names: Sequence[str]) -> dict[str, Any]:
    """Tasks and groups by name, as lm-eval's `evaluate` takes them.

    Args:
        names: Of files, of folders (every file in it that defines a task or a group), else of lm-eval's own tasks.

    Raises:
        UsageError: there is no such task, or its file or data cannot be read.
    """
    from lm_eval.tasks import TaskManager

    own = [name for name in names if not Path(name).exists()]
    for name in own:
        if os.sep in name or name.endswith(SUFFIX):
            raise UsageError(f"{KINDS}; there is no '{name}'.")
    folders = [name for name in names if Path(name).is_dir()]
    files = [name for name in names if Path(name).is_file()] + [file for folder in folders for file in _of_folder(folder)]
    read = {name: _read(Path(name)) for name in files}
    for name, values in read.items():
        check_metrics(name, values.get("metric_list"))
    # A group names tasks, which lm-eval looks for in folders and among its own; it loads a group by its name only.
    beside = sorted({str(Path(name).parent) for name, values in read.items() if "group" in values})
    manager = TaskManager(include_path=beside, include_defaults=bool(own))
    if any(not set(_members(values)) <= set(manager.all_tasks) for values in read.values()):
        manager = TaskManager(include_path=beside)
    for name in own:
        if name not in manager.all_tasks:
            hint = did_you_mean(name, manager.all_tasks) or " `lm-eval ls tasks` lists them."
            raise UsageError(f"{KINDS}; got '{name}'.{hint}")
    out: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in dict.fromkeys([*own, *files]):
        for part, found in _loaded(manager, name, read.get(name, {}).get("group", name)).items():
            twice = out[part].keys() & found.keys()
            if twice:
                raise UsageError(f"Expected each task once, got '{min(twice)}' again from '{name}'; name it once.")
            out[part].update(found)
    for name, task in out["tasks"].items():
        check_metrics(name, task.get_config("metric_list"))
    return out


def check_metrics(name: str, listed: Any) -> None:
    """Whether the metrics of a task are on this machine, before anything is computed.

    Raises:
        UsageError: one is none of lm-eval's, and cannot be downloaded.
    """
    from lm_eval.api.registry import get_metric

    for one in listed if isinstance(listed, list) else ():
        metric = one.get("metric") if isinstance(one, dict) else None
        if isinstance(metric, str) and get_metric(metric, bool(one.get("hf_evaluate"))) is None:
            raise UsageError(
                f"Expected metrics of lm-eval in the task '{name}', got '{metric}', which is none of them and cannot be "
                "downloaded; name another in its metric_list."
            )


def _loaded(manager: Any, name: str, known_as: str) -> Mapping[str, Any]:
    """What lm-eval makes of one name or file: tasks with their data."""
    try:
        found: Mapping[str, Any] = manager.load([known_as])
    except Exception as error:  # YAML, data files, templates, functions and downloads fail in as many ways
        raise UsageError(
            f"Expected a task that lm-eval can load from '{name}', got {said(error)}; mend the task or put its data where it "
            "says (relative to the current folder)."
        ) from error
    return found


def _of_folder(folder: str) -> list[str]:
    """Files of a folder that define a group, or a task that is in none of its groups; files to be included do neither."""
    read = {str(path): _read(path) for path in sorted(Path(folder).glob(f"*{SUFFIX}"))}
    members = {member for values in read.values() for member in _members(values)}
    names = {path: values.get("group", values.get("task")) for path, values in read.items()}
    chosen = [path for path, name in names.items() if isinstance(name, str) and name not in members]
    if not chosen:
        raise UsageError(f"Expected files of tasks (*{SUFFIX} with `task:` or `group:`) in '{folder}', got none.")
    return chosen


def _members(values: Mapping[str, Any]) -> list[str]:
    """Names of the tasks of a group, of which each is a name or a mapping."""
    listed = values.get("task") if "group" in values else ()
    found = [one.get("task", one.get("group")) if isinstance(one, dict) else one for one in listed or ()]
    return [name for name in found if isinstance(name, str)]


class _Reader(yaml.SafeLoader):
    """YAML in which a function is only noticed, not imported."""


_Reader.add_constructor("!function", lambda loader, node: (node.value,))


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a task file says, with what it includes.

    Args:
        path: The file.
        above: Files that include it.

    Raises:
        UsageError: it is no mapping in YAML, or includes itself.
    """
    place = path.resolve()
    if place in above:
        raise UsageError(f"Expected files that include one another in one direction, got '{path}' by way of itself; mend it.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Reader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"Expected '{path}' to be a task in YAML, got {said(error)}; mend it.") from error
    if not isinstance(values, dict):
        raise UsageError(f"Expected '{path}' to be a task in YAML (`task:`, `dataset_path:` ...), got {type(values).__name__}.")
    included = values.get("include") or []
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / str(name), (*above, place))
    return merged | values


def said(error: BaseException) -> str:
    """An error of another library, as part of a sentence."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}" if text else type(error).__name__
