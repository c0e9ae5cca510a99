"""What a command does not load, and how soon it tells a name that leads nowhere."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_ft.cli.startup import AROUND, Lean, compiled_when_called, instead, kept, uncollected

LEAN = """
import gc, json, sys
from lightning_ft.cli import startup
startup.begin()
startup.begin()
import lightning, peft
import lightning_ft.api
before = [name for name in ("scipy.signal", "torch._inductor.compile_fx", "sklearn") if name in sys.modules]
import torch
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
print(json.dumps([before, [type(f).__name__ for f in sys.meta_path].count("Lean"), gc.get_freeze_count(), gc.isenabled(),
                  "bitsandbytes" in sys.modules, "torchmetrics" in sys.modules, compiled]))
"""
EARLY = """
import contextlib, io, json, sys
from lightning_ft import cli
said = []
for words in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = cli.main(words)
    said.append([code, errors.getvalue()])
print(json.dumps([said, [name for name in ("torch", "transformers", "lightning") if name in sys.modules]]))
"""


def output_of(code: str, *arguments: str, folder: Path | None = None) -> Any:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_command_loads_no_compiler_and_no_signals() -> None:
    before, finders, frozen, enabled, *loaded, compiled = output_of(LEAN)
    assert before == []
    assert (finders, enabled, loaded, compiled) == (1, True, [True, True], 2)
    assert frozen > 100_000


def test_every_module_of_the_table_is_found_where_it_is_installed() -> None:
    for name in AROUND:
        parent = find_spec(name.rpartition(".")[0]) if "." in name else None
        spec = Lean().find_spec(name, None if parent is None else parent.submodule_search_locations)
        assert spec is not None, f"{name} is not there any more: take it out of the table"
        assert (spec.name, spec.origin is not None) == (name, True)
    assert Lean().find_spec("json", None) is None


def test_torch_compiles_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, dict[str, Any]]] = []

    def compile_(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        given.append((function, options))
        return lambda *args, **kwargs: ("compiled", function(*args, **kwargs))

    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    monkeypatch.setattr(torch, "compile", compile_)
    with compiled_when_called():
        lazy: Any = torch.compile(double, dynamic=False)
        with pytest.raises(ZeroDivisionError), compiled_when_called():
            raise ZeroDivisionError
    now: Any = torch.compile
    assert now is compile_
    assert given == []
    assert [lazy(3), lazy(x=4)] == [("compiled", 6), ("compiled", 8)]
    assert given == [(double, {"dynamic": False})]
    assert lazy.__doc__ == "Twice."


def test_a_module_is_replaced_only_while_another_runs() -> None:
    other = ModuleType("colorsys")
    sys.modules.pop("colorsys", None)
    with instead("colorsys", other):
        import colorsys as replaced
    assert replaced is other
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)
    with instead("colorsys", None):
        assert sys.modules["colorsys"] is colorsys
    sys.modules.pop("colorsys")
    with pytest.raises(ModuleNotFoundError), instead("colorsys", None):
        __import__("colorsys")
    assert "colorsys" not in sys.modules


@pytest.mark.parametrize("enabled", [True, False])
def test_the_search_for_cycles_goes_on_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with kept():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()


def test_names_that_lead_nowhere_are_told_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    no_model = "Expected --model to be a model folder, a run folder, a hub id (owner/name) or 'embedded'; 'nowhere' is none."
    no_file = "row.jsonl: expected a file or folder, got nothing of that name; check the path. Did you mean 'rows.jsonl'?"
    typed = []
    for command in ("fit", "validate", "test", "predict", "evaluate", "plan"):
        typed += [([command, "--model", "nowhere", "--data", "rows.jsonl"], no_model)]
        typed += [([command, "--model", "embedded", "--data", "row.jsonl"], no_file)]
    typed += [(["generate", "nowhere", "--prompt", "x"], no_model), (["chat", "nowhere"], no_model)]
    typed += [(["evaluate", "nowhere", "--harness", "x"], no_model)]
    said, loaded = output_of(EARLY, json.dumps([words for words, _ in typed]), folder=tmp_path)
    assert said == [[2, f"lightning-ft: {sentence}\n"] for _, sentence in typed]
    assert loaded == []
