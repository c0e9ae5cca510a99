"""Trainer state as safetensors and JSON: no pickle is ever written or read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

TENSORS, TREE = "trainer_state.safetensors", "trainer_state.json"
PARTS = "optimizer"
"""The folder with the optimiser's state in parts, where each process has one."""


def save_state(state: Any, folder: Path) -> None:
    """Write a tree of dicts, lists, tuples, plain values and tensors as two files.

    Raises:
        TypeError: a leaf is of another type; the message names where it sits.
    """
    tensors: dict[str, Tensor] = {}
    tree = _strip(state, tensors, "state")
    save_file(tensors, folder / TENSORS)
    (folder / TREE).write_text(json.dumps(tree), encoding="utf-8")


def load_state(folder: Path) -> Any:
    """The tree that `save_state` wrote, tensors on the CPU."""
    tree = json.loads((folder / TREE).read_text(encoding="utf-8"))
    return _fill(tree, load_file(folder / TENSORS))


def _strip(node: Any, tensors: dict[str, Tensor], place: str) -> Any:
    if isinstance(node, Tensor):
        if place in tensors:  # {"a.b": x, "a": {"b": y}}
            place = f"{place}#{len(tensors)}"
        tensor = node.detach().cpu().contiguous()
        # safetensors refuses two names for one memory.
        shared = any(tensor.data_ptr() == other.data_ptr() for other in tensors.values())
        tensors[place] = tensor.clone() if shared else tensor
        return {"$tensor": place}
    if isinstance(node, dict):
        # JSON knows only text keys, optimiser states have numbers: pairs keep every key what it was.
        return {"$dict": [[key, _strip(value, tensors, f"{place}.{key}")] for key, value in node.items()]}
    if isinstance(node, tuple):
        return {"$tuple": [_strip(value, tensors, f"{place}.{i}") for i, value in enumerate(node)]}
    if isinstance(node, list):
        return [_strip(value, tensors, f"{place}.{i}") for i, value in enumerate(node)]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"{place} is a {type(node).__name__}; a checkpoint holds tensors and plain values only")


def _fill(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_fill(value, tensors) for value in node]
    if isinstance(node, dict):
        if "$tensor" in node:
            return tensors[node["$tensor"]]
        if "$tuple" in node:
            return tuple(_fill(value, tensors) for value in node["$tuple"])
        return {key: _fill(value, tensors) for key, value in node["$dict"]}
    return node
