"""Config files: a strict reader that knows the line of every key, and presets by name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_ft import plugins
from lightning_ft.errors import PluginError, UsageError, did_you_mean

LARGEST = 1 << 20
"""Bytes of the largest config file that is read."""
MOST_NODES = 20_000
"""Nodes, aliases expanded, of the largest config file that is read."""
DEEPEST = 50
"""Levels of the deepest config file that is read."""
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class ConfigFile:
    """A config file's values and the line of each key."""

    path: str
    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]
    """1-based line of each key, by its path of keys."""

    def place(self, *keys: str) -> str:
        """`file:line` of a key."""
        return f"{self.path}:{self.lines.get(keys, 1)}"


def read_config(path: str | Path) -> ConfigFile:
    """The mapping in a YAML file.

    Raises:
        UsageError: there is no such file, it is no YAML, no mapping, or a key stands in it twice.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UsageError(f"Expected --config to name a preset or a YAML file; got '{path}': {error.strerror}.") from None
    if len(raw) > LARGEST:
        raise UsageError(f"{path}: expected a config file of at most {LARGEST} bytes; got {len(raw)}.")
    try:
        loader = yaml.SafeLoader(raw.decode("utf-8-sig"))
        node = loader.get_single_node()
        lines: dict[tuple[str, ...], int] = {}
        if node is not None:
            _Walk(str(path), lines).node(node, ())
        values = loader.construct_document(node) if node is not None else {}
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected UTF-8 text; got byte {error.object[error.start]:#04x} at {error.start}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UsageError(f"{path}:{mark.line + 1 if mark else 1}: expected YAML; {error.problem or error.context}.") from None
    except RecursionError:
        raise UsageError(f"{path}: expected values nested at most {DEEPEST} deep; got more.") from None
    except UsageError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path}: expected YAML; {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "text" if isinstance(values, str) else f"a {type(values).__name__}"
        first = node.start_mark.line + 1 if node is not None else 1
        raise UsageError(f"{path}:{first}: expected a mapping, as `epochs: 3`; got {kind}.")
    return ConfigFile(str(path), values, lines)


class _Walk:
    """Checks the keys of a YAML tree and notes their lines."""

    def __init__(self, path: str, lines: dict[tuple[str, ...], int]) -> None:
        self.path, self.lines, self.seen = path, lines, 0

    def node(self, node: yaml.Node, keys: tuple[str, ...]) -> None:
        self.seen += 1
        if self.seen > MOST_NODES or len(keys) > DEEPEST:
            raise UsageError(f"{self.path}: expected at most {MOST_NODES} values, nested at most {DEEPEST} deep; got more.")
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self.node(item, (*keys, "[]"))
        elif isinstance(node, yaml.MappingNode):
            self._mapping(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: tuple[str, ...]) -> None:
        here: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise UsageError(
                    f"{self.path}:{line}: expected a key to be text; got '{getattr(key, 'value', '?')}', quote it."
                )
            name = str(key.value)
            if name in here and name != "<<":
                raise UsageError(f"{self.path}:{line}: expected each key once; '{name}' also stands in line {here[name]}.")
            here[name] = line
            self.lines.setdefault((*keys, name), line)
            self.node(value, (*keys, name))


def presets() -> dict[str, Path]:
    """Every preset by name: the core's own and those that installed plugins hold in `presets/`.

    Raises:
        PluginError: two packages hold a preset of the same name.
    """
    folders = {"lightning-ft": Path(__file__).parents[1] / "assets" / "presets"}
    for info in plugins.discover():
        folder = None if info.blocked else _folder(info.module)
        if folder is not None:
            folders.setdefault(info.distribution, folder)
    found: dict[str, tuple[Path, str]] = {}
    for distribution, folder in folders.items():
        for path in sorted(folder.glob("*.yaml")):
            _, other = found.setdefault(path.stem, (path, distribution))
            if other != distribution:
                raise PluginError(f"Expected one preset '{path.stem}', got two: from {other} and from {distribution}.")
    return {name: path for name, (path, _) in sorted(found.items())}


def _folder(module: str) -> Path | None:
    """`presets/` beside a plugin's module, without importing it (find_spec of a top-level name imports nothing)."""
    top, *rest = module.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for folder in (Path(location, *rest), Path(location)):
            if (folder / "presets").is_dir():
                return folder / "presets"
    return None


def find_config(name: str) -> ConfigFile:
    """The config file that `--config` names: a preset, or a path.

    Raises:
        UsageError: neither exists.
    """
    if name.endswith(SUFFIXES) or "/" in name or "\\" in name:
        return read_config(name)
    known = presets()
    if name in known:
        return read_config(known[name])
    if Path(name).is_file():
        return read_config(name)
    shown = ", ".join(known) or "none installed"
    raise UsageError(f"Expected --config to name a YAML file or a preset ({shown}); got '{name}'.{did_you_mean(name, known)}")
