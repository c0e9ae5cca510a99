"""Names of everything that plugins registered: name -> class, with the plugin it came from."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft import plugins
from lightning_ft.errors import PluginError, UsageError, did_you_mean

if TYPE_CHECKING:
    import pluggy

KINDS = ("method", "objective", "task", "metric", "optimizer")
"""What can be registered; the hook of a kind is `register_<kind>s`."""
CORE = "lightning_ft.defaults"
"""The plugin that the core registers itself."""
FLAGS = {"metric": "metrics"}
"""Flags that are not called as the kind is."""


@dataclass(frozen=True)
class Entry:
    """One registered class."""

    name: str
    cls: type[Any]
    plugin: str
    version: str


class Table(Mapping[str, Entry]):
    """The registered classes of one kind; look-ups are case-insensitive, an unknown name is a `UsageError`."""

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self._entries = {name.lower(): entry for name, entry in entries.items()}

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name.lower()]
        except KeyError:
            names = [entry.name for entry in self._entries.values()]
            flag = FLAGS.get(self.kind, self.kind)
            raise UsageError(
                f"Expected --{flag} to be one of {', '.join(names)}; got '{name}'.{did_you_mean(name, names)}"
                " `lightning-ft plugins list` shows which plugin brings which."
            ) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._entries

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def default(self) -> Entry:
        """The class that declares itself the default; a plugin's goes before the core's own.

        Raises:
            PluginError: two plugins both declare a default.
            UsageError: none does.
        """
        declared = [e for e in self._entries.values() if getattr(e.cls, "default", False)]
        if not declared:
            raise UsageError(f"Expected --{self.kind} to be one of {', '.join(self)}, got options without a name.")
        foreign = [e for e in declared if e.plugin != CORE]
        if len(foreign) > 1:
            both = " and ".join(f"{e.name} ({e.plugin})" for e in foreign[:2])
            raise PluginError(f"Expected one default {self.kind}, got {both}; name one with --{self.kind}.")
        return (foreign or declared)[0]


class Registry:
    """All tables; a kind's classes are imported when the kind is first asked for."""

    def __init__(self, manager: pluggy.PluginManager, infos: list[plugins.PluginInfo]) -> None:
        self.manager = manager
        self.plugins = infos
        self._versions = {info.name: info.version for info in infos}
        self._tables: dict[str, Table] = {}

    def __getitem__(self, kind: str) -> Table:
        if kind not in self._tables:
            self._tables[kind] = self._read(kind)
        return self._tables[kind]

    @property
    def methods(self) -> Table:
        """Fine-tuning methods."""
        return self["method"]

    @property
    def objectives(self) -> Table:
        """Training objectives."""
        return self["objective"]

    @property
    def tasks(self) -> Table:
        """Tasks."""
        return self["task"]

    @property
    def metrics(self) -> Table:
        """Metrics."""
        return self["metric"]

    @property
    def optimizers(self) -> Table:
        """Optimisers."""
        return self["optimizer"]

    def _read(self, kind: str) -> Table:
        base = _base(kind)
        hook = getattr(self.manager.hook, f"register_{kind}s")
        entries: dict[str, Entry] = {}
        for implementation in hook.get_hookimpls():
            plugin = implementation.plugin_name
            for cls in _call(implementation, plugin, kind):
                if not (isinstance(cls, type) and issubclass(cls, base)):
                    raise PluginError(
                        f"Plugin '{plugin}' returned {cls!r} from register_{kind}s; expected a subclass of {base.__name__}."
                    )
                name = getattr(cls, "name", None) if kind != "optimizer" else cls.__name__
                if not isinstance(name, str) or not name:
                    raise PluginError(f"Plugin '{plugin}': {kind} class {cls.__name__} needs a class variable `name`.")
                twin = entries.get(name.lower())
                if twin is not None:
                    raise PluginError(
                        f"Expected one {kind} named '{name}', got two: from plugin '{twin.plugin}' and from plugin "
                        f"'{plugin}'; switch one off with LIGHTNING_FT_DISABLE_PLUGINS={plugin}."
                    )
                entries[name.lower()] = Entry(name, cls, plugin, self._versions.get(plugin, ""))
        return Table(kind, dict(sorted(entries.items())))


def _call(implementation: pluggy.HookImpl, plugin: str, kind: str) -> list[Any]:
    """What one plugin's hook returns; a failing import inside the hook names the plugin."""
    try:
        found: Any = implementation.function()
        return list(found)
    except Exception as error:
        raise PluginError(
            f"Plugin '{plugin}' failed in register_{kind}s: {type(error).__name__}: {error}; mend or uninstall it, "
            f"or set LIGHTNING_FT_DISABLE_PLUGINS={plugin}."
        ) from error


def _base(kind: str) -> type[Any]:
    """The contract of a kind, imported only when the kind is read (a metric needs torch, a method does not)."""
    if kind == "method":
        from lightning_ft.method import Method as base
    elif kind == "objective":
        from lightning_ft.objective import Objective as base  # type: ignore[assignment]  # one name for five classes
    elif kind == "task":
        from lightning_ft.task import Task as base  # type: ignore[assignment]  # as above
    elif kind == "metric":
        from lightning_ft.metric import Metric as base  # type: ignore[assignment]  # as above
    else:
        from torch.optim import Optimizer as base  # type: ignore[assignment]  # as above
    return base


@functools.cache
def registry() -> Registry:
    """The process's registry, loaded strictly on first use."""
    return Registry(*plugins.load())
