from __future__ import annotations

from typing import Any

import pytest

from lightning_ft.classpaths import check_class_paths, trusted_prefixes
from lightning_ft.errors import UsageError

EVIL = {"class_path": "os.system"}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"callbacks": EVIL}, "callbacks.class_path"),
        ({"callbacks": [1, EVIL]}, "callbacks.class_path"),
        ({"a": {"b": {"init_args": {"c": [EVIL]}}}}, "a.b.init_args.c.class_path"),
        ({"optimizer": {"class_path": "lightning_fta.Thing"}}, "optimizer.class_path"),
        ({"optimizer": {"class_path": "torch.nn.Linear"}}, "optimizer.class_path"),
        ({"optimizer": {"class_path": ["os.system"]}}, "optimizer.class_path"),
        ({"trainer": {"logger": "os.path"}}, "trainer.logger"),
        ({"trainer": {"logger": " os.path "}}, "trainer.logger"),
        ({"trainer": {"callbacks": ["Timer", "os.path"]}}, "trainer.callbacks"),
    ],
)
def test_foreign_paths(values: dict[str, Any], place: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_class_paths(values, "x.yaml")
    said = str(caught.value)
    assert said.startswith("Expected a class of lightning_ft, torch.optim, lightning")
    assert " in x.yaml; got '" in said
    assert f"at '{place}', which a config may not import: bring it in a plugin package." in said


@pytest.mark.parametrize(
    "values",
    [
        {"callbacks": {"class_path": "Timer"}},
        {"callbacks": {"class_path": "lightning.pytorch.callbacks.Timer"}},
        {"optimizer": {"class_path": "torch.optim.SGD"}},
        {"task": {"class_path": "lightning_ft.builtin.Messages"}},
        {"data": ["os.path", "a.b.jsonl"], "model": "os.path"},
        {"trainer": {"default_root_dir": "os.path", "profiler": "simple", "logger": "no_such_module_here.v1"}},
        "text", None, 3, [],
    ],
)  # fmt: skip
def test_what_is_let_through(values: Any) -> None:
    check_class_paths(values, "x.yaml")


def test_a_section_of_its_own() -> None:
    with pytest.raises(UsageError, match=r"at 'trainer\.logger'"):
        check_class_paths({"logger": "os.path"}, "the flags", section="trainer")


def test_enabled_plugins_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FT_PLUGINS_AUTOLOAD", "0")
    assert trusted_prefixes() == ("lightning_ft", "torch.optim", "lightning")
