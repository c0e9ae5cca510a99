"""`plugins list`: what is installed, from which distribution, and whether it works."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from lightning_ft import plugins
from lightning_ft.cli.parser import command
from lightning_ft.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Listed:
    """A line of the list."""

    name: str
    version: str
    distribution: str
    state: str
    """`enabled`, `disabled` or `broken`."""
    commands: tuple[str, ...] = ()
    brings: dict[str, list[str]] = field(default_factory=dict)
    """Kind to names; known only after a check."""
    error: str | None = None


def main(argv: Sequence[str]) -> int:
    """Print the list."""
    parser = command(
        "plugins",
        "List installed plugins from their metadata, without importing them.",
        "LIGHTNING_FT_DISABLE_PLUGINS=a,b switches plugins off; LIGHTNING_FT_PLUGINS_AUTOLOAD=0 all of them.",
    )
    parser.add_argument("what", nargs="?", choices=("list",), default="list")
    parser.add_argument("--check", action="store_true", help="import them, show what they bring; exit code 1 if one is broken")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    listed = listing(check=arguments.check)
    if arguments.json:
        print(json.dumps([asdict(line) for line in listed], indent=2))
    else:
        print(_show(listed, checked=arguments.check))
    return 1 if arguments.check and any(line.state == "broken" for line in listed) else 0


def listing(*, check: bool = False) -> list[Listed]:
    """Every plugin and every distribution that brings only commands, sorted by name.

    Args:
        check: import the plugins and read what they register.
    """
    commands: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for name, point in plugins.commands().items():
        if point.dist is not None:
            commands.setdefault(point.dist.name, []).append(name)
            versions[point.dist.name] = point.dist.version
    infos = plugins.load(tolerant=True)[1] if check else plugins.discover()
    brings, errors = _registered() if check else ({}, {})
    out = []
    for info in infos:
        error = info.error or errors.get(info.name) or (None if info.blocked else _missing(info.module))
        state = "disabled" if info.blocked else "broken" if error else "enabled"
        own = tuple(commands.pop(info.distribution, ()))
        out.append(Listed(info.name, info.version, info.distribution, state, own, brings.get(info.name, {}), error))
    out += [Listed("-", versions[dist], dist, "enabled", tuple(names)) for dist, names in commands.items()]
    return sorted(out, key=lambda line: (line.distribution, line.name))


def _missing(module: str) -> str | None:
    """Why a module cannot be there, without importing anything."""
    top = module.partition(":")[0].split(".")[0]
    try:
        return None if importlib.util.find_spec(top) else f"module '{top}' is not on the path; reinstall the distribution."
    except (ImportError, ValueError) as error:
        return str(error)


def _registered() -> tuple[dict[str, dict[str, list[str]]], dict[str, str]]:
    """What each plugin registers, and the errors of those that fail at it."""
    from lightning_ft.errors import PluginError
    from lightning_ft.registry import KINDS, Registry

    registry = Registry(*plugins.load(tolerant=True))
    brings: dict[str, dict[str, list[str]]] = {}
    errors: dict[str, str] = {}
    for kind in KINDS:
        try:
            for entry in registry[kind].values():
                brings.setdefault(entry.plugin, {}).setdefault(kind, []).append(entry.name)
        except PluginError as error:
            named = [info.name for info in registry.plugins if f"'{info.name}'" in str(error)]
            errors |= dict.fromkeys(named, str(error))
    return brings, errors


def _show(listed: Sequence[Listed], *, checked: bool) -> str:
    if not listed:
        return "No plugins are installed (or LIGHTNING_FT_PLUGINS_AUTOLOAD=0 is set); the core works without any."
    rows = [(x.name, x.version, x.distribution, x.state, " ".join(x.commands) or "-") for x in listed]
    lines = [table(("plugin", "version", "distribution", "state", "commands"), rows)]
    for line in listed:
        if checked and line.brings:
            lines += ["", f"{line.name}:", *(f"  {kind}s: {', '.join(names)}" for kind, names in line.brings.items())]
    lines += [f"\n{line.name}: {line.error}" for line in listed if line.error]
    if not checked:
        lines.append("\n--check imports them and shows the methods, objectives, tasks, metrics and optimisers of each.")
    return "\n".join(lines)
