"""Plugins as an installer leaves them: folders of metadata on the path, read by importlib.metadata."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

from lightning_ft import plugins
from lightning_ft.errors import PluginError
from lightning_ft.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
from lightning_ft import hookimpl
from lightning_ft.method import Method

@dataclass(frozen=True)
class Own(Method):
    name: ClassVar[str] = "{name}"
    default: ClassVar[bool] = {default}
    rank: int = 4
    def attach(self, model, total_steps):
        return model

@hookimpl
def register_methods():
    return [Own]
"""
GOOD = METHOD.format(name="Own", default=True)
TYPO = "from lightning_ft import hookimpl\n\n@hookimpl\ndef register_metods():\n    return []\n"


class Site:
    """A folder on the path that distributions are put into; everything else that is installed is switched off."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.off = [point.name for group in (plugins.GROUP, plugins.COMMANDS_GROUP) for point in entry_points(group=group)]
        patch.delenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", raising=False)
        patch.syspath_prepend(str(folder))
        self.disable()

    def disable(self, *names: str) -> None:
        self.patch.setenv("LIGHTNING_FT_DISABLE_PLUGINS", ",".join([*self.off, *names]))

    def add(self, name: str, source: str = "", *, entry: str | None = None, group: str = plugins.GROUP) -> None:
        """A distribution `name` 1.0 whose module is the plugin `entry`."""
        info = self.folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry or name} = {name}\n")
        (self.folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        self.patch.delitem(sys.modules, name, raising=False)

    def names(self) -> list[str]:
        return [info.name for info in plugins.load()[1] if not info.blocked]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_found_by_metadata_and_registered(site: Site) -> None:
    site.add("own_a", GOOD)
    (info,) = [found for found in plugins.discover() if not found.blocked]
    assert (info.name, info.distribution, info.version, info.module) == ("own_a", "own_a", "1.0", "own_a")
    assert "own_a" not in sys.modules
    manager, _ = plugins.load()
    assert manager.get_plugin("own_a") is sys.modules["own_a"]
    assert [name for name, _ in manager.list_name_plugin()] == ["lightning_ft.defaults", "own_a"]


def test_switched_off_by_name_and_altogether(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("own_b", "raise SystemError('never imported')")
    site.disable(" OWN_B ")
    assert site.names() == []
    assert next(info for info in plugins.load()[1] if info.name == "own_b").blocked
    site.disable("own_x")
    with pytest.raises(PluginError, match=r"names 'own_x', which is not installed\. Did you mean 'own_b'\?"):
        plugins.load()
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    assert plugins.load()[1] == plugins.discover() == []
    assert plugins.commands() == {}
    assert set(Registry(*plugins.load()).methods) == {"full"}


def test_a_broken_plugin_is_an_error_or_a_note(site: Site) -> None:
    site.add("broken_a", "import no_such_dependency")
    site.add("broken_b", TYPO)
    site.add("own_c", GOOD)
    with pytest.raises(PluginError, match=r"^Plugin 'broken_a' \(broken_a 1\.0\) failed to import: ModuleNotFoundError"):
        plugins.load()
    site.disable("broken_a")
    with pytest.raises(PluginError, match=r"^Plugin 'broken_b' \(broken_b 1\.0\) does not fit the hooks: .*register_metods"):
        plugins.load()
    site.disable()
    manager, infos = plugins.load(tolerant=True)
    errors = {info.name: info.error for info in infos if not info.blocked}
    assert str(errors["broken_a"]).endswith("set LIGHTNING_FT_DISABLE_PLUGINS=broken_a.")
    assert "register_metods" in str(errors["broken_b"])
    assert errors["own_c"] is None
    assert set(Registry(manager, infos).methods) == {"full", "Own"}


def test_two_names_of_one_module_leave_the_first_alone(site: Site) -> None:
    site.add("own_d", GOOD)
    points = site.folder / "own_d-1.0.dist-info" / "entry_points.txt"
    points.write_text("[lightning_ft]\nfirst = own_d\nsecond = own_d\n")
    importlib.invalidate_caches()
    manager, infos = plugins.load(tolerant=True)
    assert [(info.name, info.error is None) for info in infos if not info.blocked] == [("first", True), ("second", False)]
    assert manager.get_plugin("first") is not None
    with pytest.raises(PluginError, match=r"^Plugin 'second' .*does not fit the hooks"):
        plugins.load()


def test_two_distributions_of_one_name(site: Site) -> None:
    site.add("own_e", GOOD)
    site.add("own_f", METHOD.format(name="other", default=False), entry="Own_E")
    with pytest.raises(PluginError, match=r"got two: own_[ef] 1\.0 and own_[ef] 1\.0; uninstall one") as caught:
        plugins.load()
    assert "own_e 1.0" in str(caught.value)
    assert "own_f 1.0" in str(caught.value)
    site.disable("own_e")
    assert site.names() == []


def test_commands_are_not_imported_and_can_be_switched_off(site: Site) -> None:
    site.add("own_g", "raise SystemError('never imported')", group=plugins.COMMANDS_GROUP)
    assert plugins.commands()["own_g"].value == "own_g"
    site.disable("own_g")
    assert plugins.commands() == {}
    plugins.load()
