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
    # A group names tasks, which lm-eval looks for in folders and among its own.
    beside = sorted({str(Path(name).parent) for name in files if "group" in _read(name)})
    manager = TaskManager(include_path=beside, include_defaults=bool(own or beside))
    for name in own:
        if name not in manager.all_tasks:
            hint = did_you_mean(name, manager.all_tasks) or " `lm-eval ls tasks` lists them."
            raise UsageError(f"{KINDS}; got '{name}'.{hint}")
    out: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in dict.fromkeys([*own, *files]):
        for part, found in _loaded(manager, name).items():
            twice = out[part].keys() & found.keys()
            if twice:
                raise UsageError(f"Expected each task once, got '{min(twice)}' again from '{name}'; name it once.")
            out[part].update(found)
    return out


def _loaded(manager: Any, name: str) -> Mapping[str, Any]:
    """What lm-eval makes of one name or file: tasks with their data."""
    try:
        found: Mapping[str, Any] = manager.load([name])
    except Exception as error:  # YAML, data files, templates, functions and downloads fail in as many ways
        raise UsageError(
            f"Expected a task that lm-eval can load from '{name}', got {said(error)}; mend the task or put its data where it "
            "says (relative to the current folder)."
        ) from error
    return found


def _of_folder(folder: str) -> list[str]:
    """Files of a folder that define a group, or a task that is in none of its groups; files to be included do neither."""
    defined: dict[str, str] = {}
    members: set[str] = set()
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")):
        values = _read(str(path))
        group = "group" in values
        name = values.get("group" if group else "task")
        if isinstance(name, str):
            defined[str(path)] = name
        for member in values.get("task") or () if group and isinstance(values.get("task"), list) else ():
            members.add(str(member.get("task", member.get("group")) if isinstance(member, dict) else member))
    chosen = [path for path, name in defined.items() if name not in members]
    if not chosen:
        raise UsageError(f"Expected files of tasks (*{SUFFIX} with `task:` or `group:`) in '{folder}', got none.")
    return chosen


class _Reader(yaml.SafeLoader):
    """YAML in which functions are names."""


_Reader.add_constructor("!function", lambda loader, node: str(node.value))


def _read(name: str) -> dict[str, Any]:
    """What a task file says by itself.

    Raises:
        UsageError: it is no mapping in YAML.
    """
    try:
        values = yaml.load(Path(name).read_text(encoding="utf-8"), _Reader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"Expected '{name}' to be a task in YAML, got {said(error)}; mend it.") from error
    if not isinstance(values, dict):
        raise UsageError(f"Expected '{name}' to be a task in YAML (`task:`, `dataset_path:` ...), got {type(values).__name__}.")
    return values


def said(error: BaseException) -> str:
    """An error of another library, as part of a sentence."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}" if text else type(error).__name__
