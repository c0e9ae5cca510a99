"""What keeps the house in order: layers, a core without plugins' names, plugins without private ones, and plain files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "lightning_ft"
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
LAYERS = (
    ("words that everybody uses", "errors types words"),
    ("contracts", "method objective task metric"),
    ("files that are whole or not there, and their names", "layout atomic cache checkpoint"),
    ("the plugin API", "hookspecs plugins registry classpaths"),
    ("options", "checked config monitor quantization"),
    ("rows to batches", "data"),
    ("the hot path", "engine"),
    ("models and their answers", "backbone threads vocabulary loading decoding generation endpoint"),
    ("the core's own plugin", "defaults builtin likelihood"),
    ("evidence", "evaluation candidates scoring signs bootstrap charts curves page report"),
    ("one optimiser step", "optim doubt master shortage validation module"),
    ("the kit for plugins", "testing"),
    ("what surrounds training", "run"),
    ("the Python interface", "api"),
    ("the command line", "cli __main__"),
)
"""From the bottom to the top. A module imports its own layer and those below, at its top or in a function; imports for
types alone are free."""
HEIGHT = {name: height for height, (_, names) in enumerate(LAYERS) for name in names.split()}
UPWARDS = {("plugins", "defaults"): "the core's own plugin is registered by the same door as everybody's"}
"""Imports of a higher layer, each with its reason."""
TOP = {
    ".ci", ".gitignore", "LICENSE", "Makefile", "README.md", "benchmarks", "lightning_ft", "plugins", "pyproject.toml", "tests",
}  # fmt: skip
MOST_LINES = 400
TEXT = {".py", ".c", ".h", ".yaml", ".toml", ".md", ".jinja", ".sh", ".txt", ""}
BROUGHT = {
    "docstring_parser": "jsonargparse", "lightning_utilities": "lightning", "numpy": "transformers", "packaging": "lightning",
    "pyarrow": "datasets",
    "tokenizers": "transformers",
}  # fmt: skip
"""Libraries that the core imports because a dependency brings them."""
PERHAPS = {("triton_kernels.py", "triton"), ("browser.py", "selenium")}
"""Imports of what only some machines have, in a file that is imported only there: builds of PyTorch for GPUs bring Triton, who
tests pages has a browser."""
NAMED = {"yaml": "pyyaml"}
"""Modules that are not called as their distribution is."""
ORDINARY = {
    "accuracy": "of tokens, the measure of the core itself",
    "completion": "what is generated",
    "chat": "the core's own command, and the word for templates of conversations",
    "code": "what runs",
    "freeze": "the verb",
    "reasoning": "a key of messages that chat templates read",
    "tree": "of a syntax, of values",
    "preference": "the core's own kind of example",
    "unpaired": "the core's own kind of example",
}
"""Names of plugins' classes that are words of the core, too, with what it means by them."""
MACHINE = re.compile(r"(?<![\w.<>{}$*~-])/(?:work|home|root|Users|mnt|media|scratch)/\w|\b[A-Z]:\\\\?Users|file://\w")
"""Places that exist on one machine only."""


class Import(NamedTuple):
    """One import that runs."""

    module: str
    name: str | None
    line: int


@cache
def tracked() -> tuple[Path, ...]:
    """Files of the repository: those that git knows or would add."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout, so the repository's files cannot be told from others")
    return tuple(ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file())


def python(*folders: Path) -> list[Path]:
    """Python files below some folders, without tests."""
    found = [p for p in tracked() if p.suffix == ".py" and any(p.is_relative_to(folder) for folder in folders)]
    return [p for p in found if "tests" not in p.relative_to(ROOT).parts]


def where(path: Path, line: int | None = None) -> str:
    name = path.relative_to(ROOT).as_posix()
    return name if line is None else f"{name}:{line}"


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file but those under `if TYPE_CHECKING`."""

    def walk(node: ast.AST) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, None, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                yield from (Import(module, alias.name, child.lineno) for alias in child.names)
            else:
                yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def part_of(path: Path) -> str:
    """The module or folder directly below the core's own, `data` for lightning_ft/data/split.py."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


# --- the core -------------------------------------------------------------------------------------------------------------


def test_every_part_of_the_core_has_its_layer() -> None:
    parts = {part_of(path) for path in python(CORE)} - {"__init__"}
    assert parts == HEIGHT.keys()


def test_imports_go_downwards() -> None:
    wrong = []
    for path in python(CORE):
        here = part_of(path)
        for found in imports(path):
            assert not found.module.startswith("."), f"{where(path, found.line)}: import by the full name"
            package, *parts = [*found.module.split("."), *([found.name] if found.name else [])]
            if package != "lightning_ft" or not parts or parts[0] not in HEIGHT or here not in HEIGHT:
                continue
            there = parts[0]
            if HEIGHT[there] <= HEIGHT[here] or (here, there) in UPWARDS:
                continue
            wrong.append(f"{where(path, found.line)} ({LAYERS[HEIGHT[here]][0]}) imports {there} ({LAYERS[HEIGHT[there]][0]})")
    assert not wrong, "move what is needed down a layer:\n" + "\n".join(wrong)


def test_upward_imports_that_are_excused_exist() -> None:
    there = {(part_of(path), found.name) for path in python(CORE) for found in imports(path) if found.module == "lightning_ft"}
    assert UPWARDS.keys() <= there


def test_no_module_hides_a_public_name() -> None:
    """`from lightning_ft import x` is the module x as soon as anything has imported that."""
    import lightning_ft

    assert not {part_of(path) for path in python(CORE)} & set(lightning_ft.__all__)


def test_the_core_imports_declared_dependencies_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=!~; ]", text)[0].lower() for text in project["dependencies"]}
    for library, bringer in BROUGHT.items():
        assert bringer in declared
        known = {re.split(r"[\[<>=!~; ]", text)[0].lower().replace("-", "_") for text in requires(bringer) or ()}
        assert library.lower() in known, f"{bringer} does not bring {library} any more: declare it"
    wrong = []
    for path in python(CORE):
        for found in imports(path):
            top = found.module.split(".")[0]
            if top in sys.stdlib_module_names or top in BROUGHT or top == "lightning_ft":
                continue
            if (path.name, top) in PERHAPS:
                continue
            if NAMED.get(top, top) not in declared and not (top == "pytest" and part_of(path) == "testing"):
                wrong.append(f"{where(path, found.line)} imports {top}")
    assert not wrong, "a dependency of its own makes a plugin, or belongs into pyproject.toml:\n" + "\n".join(wrong)


def init_of(package: Path) -> str:
    return (package / "__init__.py").read_text(encoding="utf-8")


def test_the_core_names_no_plugin() -> None:
    from lightning_ft.registry import KINDS, registry

    packages = {path.name for folder in PLUGINS for path in folder.glob("lightning_ft_*")}
    assert packages
    entries = [entry for kind in KINDS for entry in registry()[kind].values()]
    ours = [entry for entry in entries if entry.cls.__module__.split(".")[0] in packages]
    hooks = {path.name for folder in PLUGINS for path in folder.glob("lightning_ft_*") if "def register_" in init_of(path)}
    assert {entry.cls.__module__.split(".")[0] for entry in ours} == hooks, "run `make install`"
    names = {*packages, *(package.replace("_", "-") for package in packages)}
    names |= {entry.name for entry in ours} | {entry.cls.__name__ for entry in ours}
    core = {entry.name.lower() for entry in entries if entry not in ours}
    names = {name for name in names if name.lower() not in core and name.lower() not in ORDINARY}
    words = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(names)))})(?![\w-])", re.IGNORECASE)
    wrong = []
    for path in tracked():
        if path.is_relative_to(CORE) and path.suffix in {".py", ".yaml", ".jinja"}:
            lines = path.read_text(encoding="utf-8").splitlines()
            wrong += [f"{where(path, n)}: {found[0]}" for n, line in enumerate(lines, 1) if (found := words.search(line))]
    assert not wrong, "the core and its YAML name no plugin:\n" + "\n".join(wrong)


LIGHT = """
import sys
import lightning_ft
from lightning_ft import errors, types, method, objective, task, hookspecs, plugins, registry, classpaths, config, api
from lightning_ft import builtin, defaults
from lightning_ft.data import detect, formats, ledger, sources, split, text
from lightning_ft.cli import chat, doctor, evaluate, fit, flags, generate, help, options, parser, quickstart, resolve, score
from lightning_ft.cli import tables, values, yamlfile
from lightning_ft import TrainingConfig, fit, hookimpl
found = registry.registry()
print(*found.methods, *found.tasks, *found.objectives)
print([info.name for info in plugins.discover()])
print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def test_importing_and_listing_cost_no_torch() -> None:
    result = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stderr.split())
    assert not loaded & {
        "torch",
        "lightning",
        "transformers",
        "peft",
        "datasets",
        "torchmetrics",
        "jsonargparse",
        "tensorboard",
    }


# --- plugins --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_plugins_use_public_names_of_the_core_and_no_other_plugin(folder: Path) -> None:
    others = {path.name for other in PLUGINS if other != folder for path in other.glob("lightning_ft_*")}
    wrong = []
    for path in [p for p in tracked() if p.suffix == ".py" and p.is_relative_to(folder)]:
        bound = set()
        for found in imports(path):
            parts = [*found.module.split("."), *([found.name] if found.name else [])]
            if parts[0] in others:
                wrong.append(f"{where(path, found.line)} imports {parts[0]}, another plugin")
            if parts[0] == "lightning_ft":
                bound.add(found.name or parts[0])
                if any(part.startswith("_") and not part.startswith("__") for part in parts):
                    wrong.append(f"{where(path, found.line)} imports {'.'.join(parts)}, a private name")
        wrong += [f"{where(path, line)} reads {text}, a private name" for line, text in private_reads(path, bound)]
    assert not wrong, "\n".join(wrong)


def private_reads(path: Path, names: set[str]) -> Iterator[tuple[int, str]]:
    """`module._name` for imported `module`s."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            root = ast.unparse(node.value).split(".")[0]
            if root in names:
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_a_small_distribution_of_its_own(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    package = f"lightning_ft_{folder.name}"
    assert project["project"]["name"] == package.replace("_", "-")
    assert not {"ruff", "mypy", "pytest"} & project.get("tool", {}).keys(), "there is one configuration, in the root"
    assert project["project"]["entry-points"]["lightning_ft"] == {folder.name: package}
    assert {"README.md", package, "tests"} <= {path.name for path in folder.iterdir()}
    hooks = ast.parse((folder / package / "__init__.py").read_text()).body
    free = (ast.Expr, ast.Import, ast.ImportFrom, ast.If, ast.FunctionDef)
    assert all(isinstance(node, free) for node in hooks), "the package's __init__ holds hook implementations only"
    tests = [path for path in tracked() if path.is_relative_to(folder / "tests")]
    assert all(path.name.startswith(f"test_{folder.name}_") for path in tests if path.suffix == ".py")


# --- files ----------------------------------------------------------------------------------------------------------------


def test_the_top_level_is_fixed() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} == TOP


def test_no_file_is_long() -> None:
    written = [path for path in tracked() if path.suffix in {".py", ".yaml", ".toml", ".jinja", ".sh"}]
    assert len(written) > 100
    long = {where(path): count for path in written if (count := len(path.read_bytes().splitlines())) > MOST_LINES}
    assert not long, f"split: {long}"


def test_sources_are_ascii() -> None:
    wrong = [where(path) for path in tracked() if path.suffix in TEXT and not path.read_bytes().isascii()]
    assert not wrong


def test_no_file_names_a_place_on_a_machine() -> None:
    wrong = []
    for path in tracked():
        if path.suffix in TEXT | {".json", ".jsonl"} and path.name != "tokenizer.json":
            lines = path.read_text(encoding="utf-8").splitlines()
            wrong += [f"{where(path, n)}: {line.strip()[:80]}" for n, line in enumerate(lines, 1) if MACHINE.search(line)]
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for() -> None:
    packages = [path for folder in PLUGINS for path in folder.glob("lightning_ft_*")]
    missing = [
        where(p) for p in python(CORE, ROOT / "benchmarks", *packages) if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not missing


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in tracked() if path.name.startswith("test_")]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, "mypy and pytest's importlib mode need names that differ"
    assert not [where(path) for path in tracked() if path.name == "conftest.py" and "plugins" in path.relative_to(ROOT).parts]
