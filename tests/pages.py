"""The parts of the pages that are made from the code: `python tests/pages.py` renews them.

`python tests/pages.py RUN` also renews the verdict of README.md from a run folder.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]
README, GUIDE = ROOT / "README.md", ROOT / "plugins" / "README.md"


def generated(page: Path, name: str) -> str:
    """What stands between a page's marks of this name."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{page.name} has no marks for '{name}'"
    return found[1]


def table(head: str, rows: Sequence[tuple[str, ...]]) -> str:
    names = [name.strip() for name in head.split("|")]
    lines = [names, ["---"] * len(names), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def families() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def brought(plugin: str) -> str:
    """What a plugin registers, kind by kind."""
    from lightning_ft.registry import KINDS, registry

    parts = []
    for kind in KINDS:
        entries = [entry for entry in registry()[kind].values() if entry.plugin == plugin]
        default = registry()[kind].default() if kind in ("method", "objective") else None
        if entries:
            names = (f"`{entry.name}`{' (the default)' if entry == default else ''}" for entry in entries)
            parts.append(f"{kind}{'s' if len(entries) > 1 else ''} {', '.join(names)}")
    return "; ".join(parts)


def extras(folder: Path) -> str:
    """Presets and commands of a distribution."""
    points = project(folder).get("entry-points", {}).get("lightning_ft.commands", {}) if folder.name != "lightning_ft" else {}
    presets = sorted(path.stem for path in folder.glob("*/presets/*.yaml"))
    named = (("commands", points), ("presets", presets))
    return "; ".join(f"{what} {', '.join(f'`{name}`' for name in names)}" for what, names in named if names)


def plugin_table() -> str:
    rows = [("the core", "lightning-ft", brought("lightning_ft.defaults") + f"; {extras(ROOT / 'lightning_ft')}")]
    for folder in families():
        (name,) = project(folder)["entry-points"]["lightning_ft"]
        brings = "; ".join(filter(None, (brought(name), extras(folder))))
        rows.append((f"[{name}](plugins/{folder.name}/README.md)", project(folder)["name"], brings))
    return table("plugin | distribution | brings", rows)


def family_table() -> str:
    rows = [(f"[`{folder.name}/`]({folder.name}/README.md)", project(folder)["description"]) for folder in families()]
    return table("folder | brings", rows)


def method_table() -> str:
    """What each method keeps of its contract on the tiny models of both families."""
    from lightning_ft.registry import registry
    from lightning_ft.testing.properties import HEADS, row

    return table(" | ".join(HEADS), [row(name) for name in registry().methods])


def preset_keys(path: Path) -> list[tuple[str, str, str]]:
    """(key, value, why) of every line of a preset; the reasons are its comments."""
    found, section = [], ""
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        body, _, why = line.partition("  #")
        name, _, value = body.strip().partition(":")
        if not value.strip():
            section = name
            continue
        section = section if line.startswith(" ") else ""
        found.append((f"{section}.{name}" if section else name, value.strip(), why.strip()))
    return found


def preset_table() -> str:
    """Every preset: what it is for, and which keys it changes for which reason."""
    from lightning_ft.cli.yamlfile import presets

    rows = []
    for name, path in presets().items():
        purpose = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows.append((f"`{name}`", "", f"**{purpose}**"))
        rows += [("", f"`{key}: {value}`", why) for key, value, why in preset_keys(path)]
    return table("`--config` | changes | because", rows)


def task_table() -> str:
    from lightning_ft.registry import registry

    entries = sorted(registry().tasks.values(), key=lambda entry: (-entry.cls.precedence, entry.name))
    rows = [(f"`{e.name}`", e.cls.columns_help, ", ".join(f"`{name}`" for name in e.cls.metrics) or "-") for e in entries]
    return table("task | columns | metrics beside the likelihoods", rows)


def option_table() -> str:
    from lightning_ft.cli.help import GROUPS
    from lightning_ft.cli.options import MISSING, options_of
    from lightning_ft.config import TrainingConfig

    options = options_of(TrainingConfig)
    rows = []
    for group, names in GROUPS.items():
        for name in names:
            default = options[name].default
            shown = "" if default is MISSING or default in (None, {}) else f" Default: {plain(default)}."
            rows.append((group if name == names[0] else "", f"`--{name}`", options[name].help + shown))
    return table(" | option | meaning", rows)


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(plain, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def file_tree() -> str:
    """Every module of the core with what it is for, and the folders beside it."""
    lines = ["lightning_ft/"]
    for path in sorted((ROOT / "lightning_ft").rglob("*.py"), key=lambda p: (p.parent, p.name != "__init__.py", p.name)):
        said = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        short = re.split(r"(?<=\w)[:;,.] |\.$", said)[0] if len(said) > 90 else said.rstrip(".")
        name = path.relative_to(ROOT / "lightning_ft").as_posix()
        if path.name == "__init__.py":
            name = name.removesuffix("__init__.py")
            if not name:
                continue
        lines.append(f"  {name:<28}{short}")
    lines.append("  assets/                     the embedded base model, sample data, templates, presets")
    lines.append("plugins/                      one distribution per family, and how to write one")
    lines += [f"  {folder.name + '/':<28}{project(folder)['description'].rstrip('.')}" for folder in families()]
    lines += [
        "tests/                        test_<module>.py; the folders below",
        "  e2e/                        every command as a user types it, wrong input, what others load",
        "  contracts/                  every registered class against every clause of its contract",
        "  invariants/                 runs that must be equal are equal",
        "  distributions/eggplant/     a third-party plugin, installed by the tests",
        "benchmarks/                   suites, other trainers, results; embedded_base/ is how the shipped model was made",
    ]
    return "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n"


def sign_table() -> str:
    from lightning_ft.signs import FORGETTING, RULES, stated

    rows = [(name, stated(rule), change) for name, rule, change in RULES]
    return table("sign | given when | what to change", [*rows, FORGETTING])


def verdict_table(run: Path) -> str:
    from lightning_ft.bootstrap import Verdict

    verdict = Verdict.from_dict(json.loads((run / "verdict.json").read_text(encoding="utf-8")))
    rows = [
        (c.metric, c.shown(c.base), c.shown(c.tuned), c.shown(c.difference, signed=True), c.interval, c.word)
        for c in verdict.comparisons
    ]
    rows += [
        (f"general text: {c.metric}", c.shown(c.base), c.shown(c.tuned), c.shown(c.difference, signed=True), c.interval, c.word)
        for c in verdict.retention
    ]
    title = f"base and tuned model on {verdict.rows} held-out rows"
    return table(f"{title} | base | tuned | difference | 95% interval | tuned is", rows)


GENERATED: tuple[tuple[Path, str, Callable[[], str]], ...] = (
    (README, "plugins", plugin_table),
    (README, "tasks", task_table),
    (README, "presets", preset_table),
    (README, "signs", sign_table),
    (README, "options", option_table),
    (README, "files", file_tree),
    (GUIDE, "families", family_table),
)
SLOW: tuple[tuple[Path, str, Callable[[], str]], ...] = ((GUIDE, "methods", method_table),)
"""Made by many short trainings; tests/contracts compares it row by row, where they are run anyway."""


def renew(page: Path, name: str, content: str) -> None:
    text = page.read_text(encoding="utf-8")
    old = generated(page, name)
    page.write_text(text.replace(f"<!-- {name} -->\n{old}<!--", f"<!-- {name} -->\n{content}<!--"), encoding="utf-8")


if __name__ == "__main__":
    os.environ.pop("LIGHTNING_FT_DISABLE_PLUGINS", None)
    for page_, name_, make_ in (*GENERATED, *SLOW):
        renew(page_, name_, make_())
    for run_ in sys.argv[1:]:
        renew(README, "verdict", verdict_table(Path(run_)))
