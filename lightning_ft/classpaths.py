"""Class paths in configs: refused before anything is imported, unless they belong to code that is already trusted.

Lightning's parser imports the module of a class path before it checks the class, so that a config file could run any
module on the path; what gets here has not met that parser yet.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_ft import plugins
from lightning_ft.errors import UsageError

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
ALWAYS = ("lightning_ft", "torch.optim", "lightning")
PLAIN_TEXT = ("default_root_dir",)
"""Arguments of the Trainer that never name a class."""


def trusted_prefixes() -> tuple[str, ...]:
    """Packages whose classes a config may name: the core, enabled plugins, torch.optim and lightning."""
    packages = [info.module.partition(":")[0].split(".")[0] for info in plugins.discover() if not info.blocked]
    return tuple(dict.fromkeys((*ALWAYS, *packages)))


def check_class_paths(values: Any, place: str, *, section: str = "") -> None:
    """Refuse class paths of foreign code, anywhere in `values`; in the Trainer's section also bare dotted names.

    Raises:
        UsageError: a foreign one was found.
    """
    foreign = [(key, path) for key, path in _paths(values, section) if not _trusted(path)]
    if foreign:
        key, path = foreign[0]
        raise UsageError(
            f"Expected a class of {', '.join(trusted_prefixes())} in {place}; got '{path}' at '{key}', which a config may "
            "not import: bring it in a plugin package."
        )


def _trusted(path: str) -> bool:
    # A bare name is looked up among classes that are imported already.
    return "." not in path or any(path.startswith(f"{prefix}.") for prefix in trusted_prefixes())


def _paths(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            where = f"{key}.{name}" if key else str(name)
            if name == "class_path":
                yield where, str(item)
            else:
                yield from _paths(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _paths(item, key)
    elif isinstance(value, str) and _in_trainer(key) and DOTTED.fullmatch(value.strip()) and _importable(value):
        yield key, value.strip()


def _in_trainer(key: str) -> bool:
    head, _, rest = key.partition(".")
    return head == "trainer" and rest not in PLAIN_TEXT


def _importable(path: str) -> bool:
    """Whether the first name of a dotted text is a module (`model.v1` as a file name is none)."""
    try:
        return importlib.util.find_spec(path.strip().split(".")[0]) is not None
    except (ImportError, ValueError):
        return True
