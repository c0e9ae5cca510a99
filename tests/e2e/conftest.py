"""What the end-to-end tests share: tiny models on disk, a small data file, and one run fitted as a new user types it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from lightning_ft.cli import main
from lightning_ft.testing.processes import end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.testing.models import Family

SHORT = ("--precision", "fp32", "--verdict_rows", "3", "--max_new_tokens", "4")
"""Flags that make a run of a tiny model as short as it can be."""
FIT = (
    *("--max_steps", "6", "--eval_every", "2", "--batch_size", "4", "--keep_best", "9", "--log_every", "1"),
    *("--learning_rate", "0.01", "--seed", "3"),
)
"""Flags of the run that all tests of commands look at: three checkpoints, and a loss that falls."""


PROGRESS = (
    "strategy: ", "data: ", "task: ", "precision: ", "packing: ", "batches: ", "resume: ", "run folder: ",
    "trainable params: ", "loss: ", "preflight: ", "step ", "out of memory at step ",
)  # fmt: skip
"""How lines begin that a run says before it stops."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


class Cli(Protocol):
    """`lightning-ft ARGV` in this process."""

    def __call__(self, *argv: object, stdin: str = "") -> Result: ...


class Refused(Protocol):
    """Asserts that a command ended in one sentence that holds `parts`, and returns it.

    `at_once`: nothing was said before it, and there is no runs/ folder.
    """

    def __call__(self, result: Result, *parts: str, code: int = 2, at_once: bool = True) -> str: ...


@dataclass(frozen=True)
class Fitted:
    """A finished run, and how it was made."""

    folder: Path
    """The run folder."""
    model: Path
    data: Path
    result: Result


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of encoded data that is nobody else's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_FT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    """Folders of tiny models with their tokenizer."""
    from lightning_ft.testing.models import FAMILIES, tiny_backbone_folder

    folder = tmp_path_factory.mktemp("models")
    return {family: tiny_backbone_folder(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty rows of instruction and output."""
    file = tmp_path_factory.mktemp("data") / "support.jsonl"
    rows = [{"instruction": f"Where is order {n}?", "output": f"It is in city {n % 7}."} for n in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Calls a command in this process."""

    def call(*argv: object, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, models: dict[Family, Path], data: Path, own_cache: Path) -> Fitted:
    """The shortest call, in a process and a folder of its own."""
    place = tmp_path_factory.mktemp("user")
    argv = [sys.executable, "-m", "lightning_ft", "fit", str(models["llama"]), "--data", str(data), *SHORT, *FIT]
    done = subprocess.run(argv, cwd=place, env=dict(os.environ), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return Fitted(
        place / "runs" / "instruct_support_1", models["llama"], data, Result(done.returncode, done.stdout, done.stderr)
    )


@pytest.fixture
def clean(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, and find nothing half-written in it afterwards, nor in the cache."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob(".tmp-*"))
    assert not list(own_cache.rglob(".tmp-*"))


@pytest.fixture
def refused() -> Refused:
    """The check of every refusal."""

    def check(result: Result, *parts: str, code: int = 2, at_once: bool = True) -> str:
        *before, said = result.err.strip().splitlines()
        assert result.code == code, result.err
        assert said.startswith("lightning-ft: "), result.err
        assert all(line.startswith(PROGRESS) for line in before), result.err
        assert result.out == ""
        if at_once:
            assert before == []
            assert not Path("runs").exists()
        for part in parts:
            assert part in said
        return said.removeprefix("lightning-ft: ")

    return check


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Iterator[Any]:
    """Runs in processes of their own that may be broken on purpose: `forked.Runs`."""
    spec = importlib.util.spec_from_file_location("forked", Path(__file__).with_name("forked.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Runs(tmp_path_factory.mktemp("logs"))
    yield made
    end(made.server)


@pytest.fixture(scope="session")
def argv(models: dict[Family, Path], data: Path, runs: Any) -> tuple[object, ...]:
    """The run of these tests."""
    return models["llama"], "--data", data, *runs.FIT
