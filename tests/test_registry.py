from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from lightning_ft import hookimpl, plugins
from lightning_ft.builtin import Full
from lightning_ft.errors import PluginError, UsageError
from lightning_ft.method import Method
from lightning_ft.plugins import PluginInfo
from lightning_ft.registry import Registry


def method(name: Any, *, default: bool = False) -> type[Method]:
    @dataclass(frozen=True)
    class Own(Full):
        pass

    Own.name, Own.default = name, default
    return Own


class Unnamed(Method):
    def attach(self, model: Any, total_steps: int) -> Any:
        return model


@pytest.fixture(autouse=True)
def _core_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")


def registry(**brought: Any) -> Registry:
    """The core and one plugin per argument, whose `register_methods` returns that."""
    manager, _ = plugins.load()
    for name, classes in brought.items():
        module = ModuleType(name)
        module.register_methods = hookimpl(lambda classes=classes: classes)  # type: ignore[attr-defined]  # as a plugin has it
        manager.register(module, name=name)
    return Registry(manager, [PluginInfo(name, f"{name}-dist", "2.0", name) for name in brought])


def test_look_up_by_any_case() -> None:
    found = registry(eggs=[method("LoRA")])
    assert found.methods["lora"] is found.methods["LORA"] is found["method"]["LoRA"]
    entry = found.methods["lora"]
    assert (entry.name, entry.plugin, entry.version) == ("LoRA", "eggs", "2.0")
    assert "loRA" in found.methods
    assert "lor" not in found.methods
    assert list(found.methods) == ["full", "LoRA"]
    assert len(found.methods) == 2
    assert (found.methods["full"].plugin, found.methods["full"].version) == ("lightning_ft.defaults", "")
    assert found.optimizers["adamw"].name == "AdamW"


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        registry(eggs=[method("LoRA")]).methods["lroa"]
    assert str(caught.value) == (
        "Expected --method to be one of full, LoRA; got 'lroa'. Did you mean 'LoRA'?"
        " `lightning-ft plugins list` shows which plugin brings which."
    )
    with pytest.raises(UsageError, match=r"^Expected --metrics to be one of .*got 'perplexty'. Did you mean 'perplexity'"):
        registry().metrics["perplexty"]


def test_a_name_that_two_plugins_bring() -> None:
    found = registry(eggs=[method("LoRA")], ham=[method("lora")])
    with pytest.raises(PluginError) as caught:
        found.methods  # noqa: B018 - reading it is what fails
    assert str(caught.value) == (
        "Expected one method named 'lora', got two: from plugin 'eggs' and from plugin 'ham'; "
        "switch one off with LIGHTNING_FT_DISABLE_PLUGINS=ham."
    )
    with pytest.raises(PluginError, match=r"from plugin 'lightning_ft.defaults' and from plugin 'eggs'"):
        registry(eggs=[method("FULL")]).methods  # noqa: B018 - as above


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([int], "Plugin 'eggs' returned <class 'int'> from register_methods; expected a subclass of Method."),
        ([Full()], "Plugin 'eggs' returned Full() from register_methods; expected a subclass of Method."),
        ([Unnamed], "Plugin 'eggs': method class Unnamed needs a class variable `name`."),
        ([method(7)], "Plugin 'eggs': method class Own needs a class variable `name`."),
        (
            None,
            "Plugin 'eggs' failed in register_methods: TypeError: 'NoneType' object is not iterable; mend or uninstall it, "
            "or set LIGHTNING_FT_DISABLE_PLUGINS=eggs.",
        ),
    ],
)
def test_what_a_hook_must_not_return(classes: Any, expected: str) -> None:
    found = registry(eggs=classes)
    with pytest.raises(PluginError) as caught:
        found.methods  # noqa: B018 - reading it is what fails
    assert str(caught.value) == expected
    assert set(found.tasks) == {"messages", "text"}, "the other kinds are still there"


def test_the_default() -> None:
    assert registry().methods.default().name == "full"
    assert registry(eggs=[method("other")]).methods.default().name == "full"
    assert registry(eggs=[method("mine", default=True)]).methods.default().name == "mine", "before the core's own"
    both = registry(eggs=[method("mine", default=True)], ham=[method("yours", default=True)])
    with pytest.raises(PluginError) as caught:
        both.methods.default()
    assert str(caught.value) == "Expected one default method, got mine (eggs) and yours (ham); name one with --method."
    with pytest.raises(UsageError, match=r"^Expected --task to be one of messages, text, got options without a name"):
        registry().tasks.default()


def test_methods_and_tasks_are_listed_without_torch() -> None:
    code = (
        "import sys; from lightning_ft.registry import registry; found = registry(); "
        "print(len(found.methods), len(found.objectives), len(found.tasks), 'torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "2", "False", "False"]


def test_a_hook_may_return_any_iterable() -> None:
    assert set(registry(eggs=(method(name) for name in ("a", "b"))).methods) == {"a", "b", "full"}
