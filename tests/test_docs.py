"""README.md, plugins/README.md and benchmarks/README.md are true: examples run, names exist, tables are up to date."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
README, GUIDE, BENCHMARKS = (ROOT / folder / "README.md" for folder in (".", "plugins", "benchmarks"))
PAGES = (README, GUIDE, BENCHMARKS)
SUPPORT, PAIRS = "lightning_ft/assets/data/support.jsonl", "lightning_ft/assets/data/preference.jsonl"
EGGPLANT = ROOT / "tests" / "distributions" / "eggplant"
ROWS = {"train": 16, "validation": 2, "test": 4}
"""Rows of the shipped data that the examples get, so that they take seconds."""
PARSED_ONLY = "<!-- parsed only:"
STAGES = ("fit", "validate", "test", "predict")
OPTIONAL = {"quarantine.jsonl", "reference.safetensors"}
"""What the tree of a run names that not every run has."""


def load_pages() -> Any:
    """The module beside this one; pytest's importlib mode keeps this folder off the path."""
    spec = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = load_pages()


# --- what the pages hold --------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str
    run: bool

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        before = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[1], match[2], not before.startswith(PARSED_ONLY)))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each line of a shell block, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


# --- generated parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "name", "make"), pages.GENERATED, ids=[name for _, name, _ in pages.GENERATED])
def test_generated_parts_are_up_to_date(page: Path, name: str, make: Any) -> None:
    assert pages.generated(page, name) == make(), f"{page.name} is out of date: type `python tests/pages.py`"


def test_the_verdict_is_a_real_one() -> None:
    from lightning_ft.registry import registry

    lines = pages.generated(README, "verdict").strip().splitlines()
    assert re.match(r"\| base and tuned model on \d+ held-out rows \| base \| tuned \| difference \| 95% interval", lines[0])
    metrics = [line.split(" | ")[0].strip("| ") for line in lines[2:]]
    assert metrics[:3] == ["loss", "perplexity", "token_accuracy"]
    assert all(name.removeprefix("general text: ") in registry().metrics for name in metrics)
    assert metrics[-1] == "general text: token_accuracy"


# --- examples -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's root with a few rows of the shipped data, where the examples run."""
    rows = [json.loads(line) for line in (ROOT / SUPPORT).read_text().splitlines()]
    chosen = [row for split, count in ROWS.items() for row in [r for r in rows if r["split"] == split][:count]]
    (tmp_path / SUPPORT).parent.mkdir(parents=True)
    (tmp_path / SUPPORT).write_text("".join(json.dumps(row) + "\n" for row in chosen))
    (tmp_path / PAIRS).write_bytes((ROOT / PAIRS).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path


def test_the_examples_run_from_top_to_bottom(workplace: Path) -> None:
    """As a reader would type them, in one folder; the run that they leave is the one that the page describes."""
    from lightning_ft.cli import main

    failed = []
    for block in blocks(README):
        if block.language == "yaml":
            name = re.match(r"# (\S+)\n", block.text)
            assert name, f"{block.place}: the first line names the file"
            (workplace / name[1]).write_text(block.text)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(block.text, block.place, "exec"), {"__name__": "example"})
            assert ("held-out rows" if "verdict" in block.text else "prompts in different parts") in said.getvalue()
        for words in commands(block) if block.language == "bash" and block.run else ():
            if words[0] != "lightning-ft":
                continue
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                code = main(words[1:])
            if code or not (out.getvalue() or words[1] == "chat"):
                failed.append(f"{block.place}: {shlex.join(words)} ended with {code}: {err.getvalue()[-400:]}")
    assert not failed, "\n".join(failed)
    tree = next(block for block in blocks(README) if block.text.startswith("runs/support/\n"))
    described = {line.split()[0].rstrip("/") for line in tree.text.splitlines()[1:]}
    there = {path.name for path in (workplace / "runs" / "support").iterdir() if not path.name.startswith(".")}
    assert described - OPTIONAL <= there
    assert {name for name in there if not name.startswith("eval_")} <= described


def test_examples_that_cannot_run_are_right_so_far() -> None:
    """Flags of every command exist, those of `fit` also have values of their types; make targets and paths exist."""
    from lightning_ft.cli.resolve import parse, resolve

    shell = [block for page in PAGES for block in blocks(page) if block.language == "bash"]
    lines = [(block, words) for block in shell for words in commands(block)]
    assert len(lines) > 20
    for block, (program, *rest) in lines:
        if program == "lightning-ft":
            flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert flags <= flags_of(rest[0]) | flags_of_plugins() | {"--help"}, block.place
            if not block.run and rest[0] in STAGES and "--config" not in rest and "--resume" not in rest:
                resolve(parse(rest[1:]))
        elif program == "make":
            assert rest[0] in make_targets(), block.place
            assert all(f"{word.partition('=')[0]} ?=" in (ROOT / "Makefile").read_text() for word in rest[1:]), block.place
        elif program == "pip":
            named = [word for word in rest if not word.startswith("-") and word != "install"]
            assert named == [".", *(f"plugins/{folder.name}" for folder in pages.families())], block.place
        else:
            pytest.fail(f"{block.place}: this test does not know {program}")


def test_the_guides_python_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the kit, on the package of the other examples (which tests/test_third_party.py installs)."""
    kit = next(block for block in blocks(GUIDE) if block.language == "python" and "lightning_ft.testing" in block.text)
    used = {node.id for node in ast.walk(ast.parse(kit.text)) if isinstance(node, ast.Name)}
    monkeypatch.syspath_prepend(str(EGGPLANT))
    from lightning_ft_eggplant import method, task  # type: ignore[import-not-found]  # is there for this test only

    namespace: dict[str, Any] = {name: vars(task).get(name) or vars(method)[name] for name in used if name[0].isupper()}
    exec(compile(kit.text, kit.place, "exec"), namespace)
    namespace["test_contracts"]()
    assert used - namespace.keys() <= set(dir(builtins))


# --- names ----------------------------------------------------------------------------------------------------------------


@cache
def flags_of(name: str) -> frozenset[str]:
    """The flags of one command, as its help shows them, and those of all classes where they may be given."""
    from lightning_ft.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([name, *(["--help", "all"] if name in STAGES else ["--help"])]) == 0
    flags = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w.]*", out.getvalue()))
    return frozenset(flags | class_flags() if name in STAGES else flags)


@cache
def class_flags() -> frozenset[str]:
    from lightning_ft.cli.options import options_of
    from lightning_ft.config import PLUGGABLE
    from lightning_ft.registry import registry

    entries = [(kind, entry) for kind in PLUGGABLE for entry in registry()[kind].values()]
    return frozenset(f"--{kind}.{name}" for kind, entry in entries for name in options_of(entry.cls))


@cache
def flags_of_plugins() -> frozenset[str]:
    """Flags of plugins' commands, as their parsers name them."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "plugins").glob("*/*/**/*.py")]
    return frozenset(flag for text in sources for flag in re.findall(r'add(?:_argument)?\(\s*"(--[a-z_]+)"', text))


def make_targets() -> set[str]:
    return set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_flag_that_is_mentioned_exists() -> None:
    from lightning_ft.cli import CORE

    known = {flag for name in CORE for flag in flags_of(name)} | {"--help", "--debug", "--version", "--trainer.ARGUMENT"}
    known |= {"--task.question"}  # of the guide's example, which is not installed here
    known |= flags_of_plugins()
    known |= {"--nnodes", "--node", "--nproc", "--master", "--nodes", "--ntasks"}  # of torchrun and srun, up to a hyphen
    for page in (README, GUIDE, *(folder / "README.md" for folder in pages.families())):
        mentioned = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w.]*\w", page.read_text(encoding="utf-8")))
        mentioned = {flag for flag in mentioned if not flag.startswith("--columns.")}  # any name
        assert mentioned - {"--strict"} <= known, page.name
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    known |= {"--no-deps", "--no-index", "--no-build-isolation"}  # of pip
    for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", BENCHMARKS.read_text(encoding="utf-8"))):
        assert f'"{flag}"' in scripts or flag in known, flag


def test_every_command_option_and_format_is_documented() -> None:
    from lightning_ft.cli import CORE
    from lightning_ft.config import option_names
    from lightning_ft.data.sources import SUFFIXES
    from lightning_ft.errors import LightningFTError

    text = README.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in CORE)
    assert all(f"| `--{name}` |" in text for name in option_names())
    assert all(f"`{suffix}`" in text for suffix in SUFFIXES)
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in row.split(", ")}
    assert {cls.exit_code for cls in LightningFTError.__subclasses__()} <= codes


def test_every_hook_contract_and_fixture_is_documented() -> None:
    from lightning_ft import hookspecs, testing
    from lightning_ft.testing import checks, fixtures, methods, objectives

    text = GUIDE.read_text(encoding="utf-8")
    hooks = [name for name in vars(hookspecs) if name.startswith(("register_", "load_"))]
    assert len(hooks) == 6
    assert [name for name in hooks if f"`{name}`" not in text] == []
    assert all(name in text for name in testing.__all__ if name.startswith("check_"))
    shown = {name for name, value in vars(fixtures).items() if type(value).__name__ == "FixtureFunctionDefinition"}
    assert shown
    assert [name for name in shown if f"`{name}`" not in text] == []
    clauses: dict[str, Any] = {
        "method": methods.METHOD_CLAUSES, "task": checks.TASK_CLAUSES, "metric": checks.METRIC_CLAUSES,
        "objective": objectives.OBJECTIVE_CLAUSES,
    }  # fmt: skip
    for kind, table_ in clauses.items():
        row = re.search(rf"^\| {kind} \| (.*) \|$", text, re.MULTILINE)
        assert row, kind
        assert row[1].split(", ") == list(table_), kind


def test_paths_tests_and_links_exist() -> None:
    """Also the test functions that the proofs name, and folders in the tables."""
    for page in (*PAGES, *(folder / "README.md" for folder in pages.families())):
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:lightning_ft|plugins|tests|benchmarks)/[\w./-]*)(?:::(\w+))?`", text)
        for path, function in named:
            # Environments are made on first use.
            assert ".venv" in path or (ROOT / path).exists(), f"{page.name}: {path}"
            assert not function or f"def {function}(" in (ROOT / path).read_text(), f"{page.name}: {path}::{function}"
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_invariant_is_in_the_proofs() -> None:
    text = README.read_text(encoding="utf-8")
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "invariants").glob("test_*.py")}
    assert [path for path in sorted(there) if f"`{path}" not in text] == []


def test_environment_variables_are_read_somewhere() -> None:
    code = "".join(path.read_text() for path in (ROOT / "lightning_ft").rglob("*.py"))
    for page in PAGES:
        for name in set(re.findall(r"LIGHTNING_FT_\w+", page.read_text(encoding="utf-8"))):
            assert f'"{name}"' in code, name


def test_the_benchmark_page_names_what_is_there() -> None:
    folder = ROOT / "benchmarks"
    text = BENCHMARKS.read_text(encoding="utf-8")
    tables = {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    suites = {path.stem for path in (folder / "suites").glob("*.yaml")}
    contestants = {path.stem for path in (folder / "baselines").glob("*.py")} - {"measure", "trained", "gpu_clock", "__init__"}
    assert suites <= tables
    assert contestants <= tables
    assert {name for name in tables if name not in suites and name not in contestants} <= {"hf_trainer_pure"}
    for name in re.findall(r"`(\w+\.(?:txt|py|yaml))`", text):
        assert (folder / name).is_file(), name


def test_assets_page_names_the_columns() -> None:
    page = ROOT / "lightning_ft" / "assets" / "README.md"
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`data/(\w+\.jsonl)`", text):
        row = json.loads((page.parent / "data" / name).read_text().splitlines()[0])
        said = re.search(rf"`{name}` has the columns `([\w ]+)`", text) or re.search(rf"`data/{name}` \|.*`([\w ]+)` \|", text)
        if said:
            assert said[1].split() == list(row), name
