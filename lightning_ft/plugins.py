"""Finding and loading plugins: specifications, blocklist, built-ins, entry points, strict check, in this order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import pluggy

from lightning_ft import hookspecs
from lightning_ft.errors import PluginError, did_you_mean

GROUP = "lightning_ft"
COMMANDS_GROUP = "lightning_ft.commands"


@dataclass(frozen=True)
class PluginInfo:
    """What the metadata say about a plugin, without importing it."""

    name: str
    distribution: str
    version: str
    module: str
    blocked: bool = False
    error: str | None = None
    """Why it could not be loaded; known only after an attempt."""


def _disabled() -> frozenset[str]:
    return frozenset(filter(None, (n.strip().lower() for n in os.environ.get("LIGHTNING_FT_DISABLE_PLUGINS", "").split(","))))


def autoload() -> bool:
    """Whether entry points are read at all (`LIGHTNING_FT_PLUGINS_AUTOLOAD=0` switches them off)."""
    return os.environ.get("LIGHTNING_FT_PLUGINS_AUTOLOAD", "1") != "0"


def _points(group: str) -> list[EntryPoint]:
    """Entry points of a group, sorted; a name that two distributions claim is an error naming both, unless it is disabled."""
    if not autoload():
        return []
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        twin = found.setdefault(point.name.lower(), point)
        if (twin.value, origin(twin)) != (point.value, origin(point)) and point.name.lower() not in _disabled():
            raise PluginError(
                f"Expected one distribution for the {group} entry point '{point.name}', got two: {origin(twin)} and "
                f"{origin(point)}; uninstall one, or set LIGHTNING_FT_DISABLE_PLUGINS={point.name}."
            )
    return list(found.values())


def origin(point: EntryPoint) -> str:
    """`distribution version` of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def discover() -> list[PluginInfo]:
    """Every installed plugin, from metadata alone."""
    return [
        PluginInfo(
            name=point.name,
            distribution=point.dist.name if point.dist else "?",
            version=point.dist.version if point.dist else "?",
            module=point.value,
            blocked=point.name.lower() in _disabled(),
        )
        for point in _points(GROUP)
    ]


def commands() -> dict[str, EntryPoint]:
    """Commands that plugins bring, by name; the module is imported only when the command is called."""
    return {point.name: point for point in _points(COMMANDS_GROUP) if point.name.lower() not in _disabled()}


def load(*, tolerant: bool = False) -> tuple[pluggy.PluginManager, list[PluginInfo]]:
    """A new manager with all plugins registered, and what was loaded.

    Args:
        tolerant: note a broken plugin in its `PluginInfo.error` instead of stopping (`plugins list`, `doctor`).

    Raises:
        PluginError: a plugin fails to import, implements a hook that does not exist, or is named in
            `LIGHTNING_FT_DISABLE_PLUGINS` without being installed.
    """
    from lightning_ft import defaults

    manager = pluggy.PluginManager("lightning_ft")
    manager.add_hookspecs(hookspecs)
    manager.register(defaults, name="lightning_ft.defaults")
    points = {point.name.lower(): point for point in _points(GROUP)}
    installed = points.keys() | {point.name.lower() for point in _points(COMMANDS_GROUP)}
    unknown = sorted(_disabled() - installed)
    if unknown and autoload():
        raise PluginError(
            f"LIGHTNING_FT_DISABLE_PLUGINS names '{unknown[0]}', which is not installed.{did_you_mean(unknown[0], installed)} "
            "`lightning-ft plugins list` shows what is."
        )
    infos: list[PluginInfo] = []
    for info in discover():
        error = None
        if not info.blocked:
            error = _register(manager, points[info.name.lower()], tolerant=tolerant)
        infos.append(PluginInfo(info.name, info.distribution, info.version, info.module, info.blocked, error))
    return manager, infos


def _register(manager: pluggy.PluginManager, point: EntryPoint, *, tolerant: bool) -> str | None:
    """Import and register one plugin; its error as text when `tolerant`."""
    mend = f"mend or uninstall it, or set LIGHTNING_FT_DISABLE_PLUGINS={point.name}"
    try:
        module = point.load()
    except Exception as error:
        message = f"Plugin '{point.name}' ({origin(point)}) failed to import: {type(error).__name__}: {error}; {mend}."
        if tolerant:
            return message
        raise PluginError(message) from error
    try:
        manager.register(module, name=point.name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        message = f"Plugin '{point.name}' ({origin(point)}) does not fit the hooks: {error}; {mend}."
        if tolerant:
            if manager.get_name(module) == point.name:  # else it is the twin of a plugin that works
                manager.unregister(module)
            return message
        raise PluginError(message) from error
    return None
