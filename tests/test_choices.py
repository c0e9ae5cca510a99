from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import pytest

from lightning_ft import hookimpl, plugins
from lightning_ft.builtin import SFT, Full, Messages, RawText
from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from lightning_ft.registry import Registry
from lightning_ft.run.choices import choose


@dataclass(frozen=True)
class Ranked(Full):
    name: ClassVar[str] = "Ranked"
    default: ClassVar[bool] = False
    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"expected a rank above 0, got {self.rank}")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The core and a plugin with one method that has an option."""
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    manager, infos = plugins.load()
    module = ModuleType("ranked")
    module.register_methods = hookimpl(lambda: [Ranked])  # type: ignore[attr-defined]  # as a plugin has it
    manager.register(module, name="ranked")
    return Registry(manager, infos)


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig(model="m", data=["x"], **values)


def test_nothing_named(registry: Registry) -> None:
    given = config()
    chosen = choose(given, registry)
    assert (chosen.method, chosen.objective, chosen.task) == (Full(), SFT(), None)
    assert chosen.optimizer.__name__ == "AdamW"
    assert chosen.optimizer_options == {}
    assert given.as_dict()["method"] == {"name": "full"}, "what was chosen is what is recorded"
    assert given.as_dict()["objective"] == {"name": "sft"}
    assert given.as_dict()["optimizer"] == {"name": "AdamW"}


@pytest.mark.parametrize("value", ["ranked", {"name": "RANKED", "rank": 4}, Ranked()])
def test_names_options_and_instances_mean_the_same(registry: Registry, value: Any) -> None:
    given = config(method=value, task="Text")
    chosen = choose(given, registry)
    assert chosen.method == Ranked(4)
    assert chosen.task == RawText()
    assert given.as_dict()["method"] == {"name": "Ranked", "rank": 4}


def test_the_record_chooses_the_same_again(registry: Registry) -> None:
    given = config(method={"name": "ranked", "rank": 9}, task=Messages(), optimizer={"name": "sgd", "momentum": 0.5})
    first = choose(given, registry)
    again = TrainingConfig.from_dict(given.as_dict())
    assert choose(again, registry) == first
    assert again.as_dict() == given.as_dict()
    assert first.optimizer.__name__ == "SGD"
    assert first.optimizer_options == {"momentum": 0.5}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"method": "rankd"}, "Expected --method to be one of full, Ranked; got 'rankd'. Did you mean 'Ranked'?"),
        (
            {"method": {"name": "ranked", "rang": 1}},
            "Expected an option of method Ranked (rank), got 'rang'. Did you mean 'rank'?",
        ),
        ({"method": {"rank": 1}}, "Expected an option of method full (none), got 'rank'."),
        ({"method": {"name": "ranked", "rank": 0}}, "method Ranked: expected a rank above 0, got 0"),
        ({"method": {"name": "ranked", "rank": "x"}}, "method Ranked: '<' not supported"),
        ({"method": SFT()}, "Expected --method to be an instance of Method, got SFT."),
        ({"objective": Full()}, "Expected --objective to be an instance of Objective, got Full."),
        ({"method": Ranked}, "Expected --method to be a name or {name: ..., option: value}; got <class"),
        ({"task": {"name": 3}}, "Expected --task to be a name or {name: ..., option: value}; got {'name': 3}."),
        ({"task": {"system": "x"}}, "Expected --task to be one of messages, text, got options without a name."),
        ({"optimizer": "Adamm"}, "Expected --optimizer to be one of AdamW, SGD; got 'Adamm'. Did you mean 'AdamW'?"),
        ({"optimizer": {"name": "sgd", "momentun": 1}}, "Expected an option of optimizer SGD (momentum, dampening, nesterov,"),
        ({"optimizer": {"lr": 1e-3}}, "Expected --learning_rate in place of the option 'lr' of optimizer AdamW."),
        (
            {"optimizer": {"weight_decay": 1}},
            "Expected --weight_decay in place of the option 'weight_decay' of optimizer AdamW.",
        ),
    ],
)
def test_what_cannot_be_chosen(registry: Registry, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(config(**values), registry)
    assert str(caught.value).startswith(expected)
