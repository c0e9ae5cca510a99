"""A plugin package of somebody else's, really installed: found, listed, used, switched off; and packages that are broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EGGPLANT = ROOT / "tests" / "distributions" / "eggplant"
LIST = """
import json, sys
from lightning_ft import plugins
from lightning_ft.registry import registry
found = registry()
print(json.dumps({
    "plugins": [[p.name, p.distribution, p.version, p.blocked] for p in found.plugins],
    "methods": {name: [e.plugin, e.version] for name, e in found.methods.items()},
    "tasks": {name: [e.plugin, e.version] for name, e in found.tasks.items()},
    "commands": sorted(plugins.commands()),
    "torch": "torch" in sys.modules,
}))
"""
ERROR = """
from lightning_ft.errors import PluginError
from lightning_ft.registry import registry
try:
    print("loaded", sorted(registry().methods))
except PluginError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the eggplant distribution in it, put there by pip."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", target, EGGPLANT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def python(code: str, *folders: Path, **environment: str) -> str:
    """What a fresh interpreter prints that sees the repository and `folders`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_FT_")} | environment
    env["PYTHONPATH"] = os.pathsep.join(map(str, (*folders, ROOT)))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def distribution(folder: Path, name: str, source: str, *, entry: str | None = None) -> Path:
    """A distribution of one module as an installer leaves it, version 1.0."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lightning_ft]\n{entry or name} = {name}\n")
    (folder / f"{name}.py").write_text(source)
    return folder


METHOD = """
from dataclasses import dataclass
from lightning_ft import hookimpl
from lightning_ft.method import Method

@dataclass(frozen=True)
class Twin(Method):
    name = "Last_Norm"
    def attach(self, model, total_steps):
        return model

@hookimpl
def register_methods():
    return [Twin]
"""


def test_listed_with_origin_and_version(site: Path) -> None:
    seen = json.loads(python(LIST, site))
    assert ["eggplant", "lightning-ft-eggplant", "0.3.1", False] in seen["plugins"]
    assert seen["methods"]["last_norm"] == ["eggplant", "0.3.1"]
    assert seen["tasks"]["fruit"] == ["eggplant", "0.3.1"]
    assert seen["tasks"]["messages"] == ["lightning_ft.defaults", ""]
    assert "eggplant" in seen["commands"]


def test_listing_reads_metadata_only(site: Path) -> None:
    code = "import sys; from lightning_ft import plugins; names = [p.name for p in plugins.discover()]; plugins.commands()"
    loaded = "print('eggplant' in names, [m for m in ('torch', 'lightning_ft_eggplant') if m in sys.modules])"
    assert python(f"{code}; {loaded}", site) == "True []"


def test_keeps_the_kits_contracts(site: Path) -> None:
    code = """
from lightning_ft.registry import registry
from lightning_ft.testing import check_method, check_metric, check_task
found = registry()
check_method(found.methods["LAST_NORM"].cls)
check_task(found.tasks["fruit"].cls)
check_metric(found.metrics["colour_named"].cls)
print("kept")
"""
    assert python(code, site).splitlines()[-1] == "kept"


def test_command_runs(site: Path) -> None:
    code = "from lightning_ft import plugins; raise SystemExit(plugins.commands()['eggplant'].load().main(['a', 'b']))"
    assert python(code, site) == "purple: a b"


def test_used_from_yaml_alone(site: Path, tmp_path: Path) -> None:
    """Method with an option, task and metric of the plugin in a real run; the final norm is all that has changed."""
    from safetensors.torch import load_file

    from lightning_ft.testing.models import tiny_backbone_folder

    base = tiny_backbone_folder(tmp_path / "base")
    rows = [{"fruit": f"fruit {n}", "colour": "purple" if n % 2 else "green"} for n in range(30)]
    (tmp_path / "fruits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fruit.yaml").write_text(
        "model: base\ndata: fruits.jsonl\nmethod: {name: LAST_NORM, scale: 2.0}\ntask:\n  name: fruit\n"
        "  question: What colour has the {fruit}?\nlearning_rate: 0.01\nmax_steps: 2\nbatch_size: 4\nprecision: fp32\n"
        "verdict_rows: 3\nmax_new_tokens: 4\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_FT_")}
    env |= {"PYTHONPATH": os.pathsep.join((str(site), str(ROOT))), "LIGHTNING_FT_CACHE": str(tmp_path / "cache")}

    def command(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lightning_ft", *argv]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    wrong = command("fit", "--config", "fruit.yaml", "--method.scle", "3")
    assert wrong.returncode == 2
    assert "to be an option of method last_norm (scale); got 'scle'. Did you mean 'scale'?" in wrong.stderr

    done = command("fit", "--config", "fruit.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "fruit_fruits_1"
    record = json.loads((run / "run.json").read_text())
    assert (record["method"], record["task"], record["status"]) == ("last_norm", "fruit", "finished")
    assert ["eggplant", "0.3.1"] in [[plugin["name"], plugin["version"]] for plugin in record["plugins"]]
    verdict = json.loads((run / "verdict.json").read_text())
    assert "colour_named" in {metric["metric"] for metric in verdict["comparisons"]}
    assert "What colour has the fruit " in verdict["samples"][0]["prompt"]
    before, after = load_file(base / "model.safetensors"), load_file(run / "final_model" / "model.safetensors")
    assert {name for name in before if not before[name].equal(after[name])} == {"model.norm.weight"}
    drift = (after["model.norm.weight"] - 2 * before["model.norm.weight"]).abs()
    assert 0 < drift.max() < 0.1


def test_switched_off_by_name(site: Path) -> None:
    seen = json.loads(python(LIST, site, LIGHTNING_FT_DISABLE_PLUGINS="Eggplant"))
    assert ["eggplant", "lightning-ft-eggplant", "0.3.1", True] in seen["plugins"]
    assert "last_norm" not in seen["methods"]
    assert "eggplant" not in seen["commands"]


def test_a_wrong_name_to_switch_off_is_an_error(site: Path) -> None:
    assert python(ERROR, site, LIGHTNING_FT_DISABLE_PLUGINS="egplant") == (
        "LIGHTNING_FT_DISABLE_PLUGINS names 'egplant', which is not installed. Did you mean 'eggplant'? "
        "`lightning-ft plugins list` shows what is."
    )


def test_autoload_off_leaves_the_core_alone(site: Path) -> None:
    seen = json.loads(python(LIST, site, LIGHTNING_FT_PLUGINS_AUTOLOAD="0"))
    assert seen["plugins"] == []
    assert set(seen["methods"]) == {"full"}
    assert seen["commands"] == []
    assert seen["torch"] is False


def test_broken_import_names_the_plugin(tmp_path: Path) -> None:
    folder = distribution(tmp_path, "rotten", "import no_such_dependency\n")
    expected = (
        "Plugin 'rotten' (rotten 1.0) failed to import: ModuleNotFoundError: No module named 'no_such_dependency'; "
        "mend or uninstall it, or set LIGHTNING_FT_DISABLE_PLUGINS=rotten."
    )
    assert python(ERROR, folder) == expected
    listing = "from lightning_ft import plugins; print([p.error for p in plugins.load(tolerant=True)[1] if p.error])"
    assert python(listing, folder) == repr([expected])
    assert python(ERROR, folder, LIGHTNING_FT_DISABLE_PLUGINS="rotten").startswith("loaded")


def test_broken_hook_names_the_plugin(tmp_path: Path) -> None:
    source = "from lightning_ft import hookimpl\n\n@hookimpl\ndef register_methods():\n    import no_such_dependency\n"
    assert python(ERROR, distribution(tmp_path, "rotten", source)) == (
        "Plugin 'rotten' failed in register_methods: ModuleNotFoundError: No module named 'no_such_dependency'; "
        "mend or uninstall it, or set LIGHTNING_FT_DISABLE_PLUGINS=rotten."
    )


def test_unknown_hook_is_refused(tmp_path: Path) -> None:
    source = "from lightning_ft import hookimpl\n\n@hookimpl\ndef register_methds():\n    return []\n"
    said = python(ERROR, distribution(tmp_path, "typo", source))
    assert said.startswith("Plugin 'typo' (typo 1.0) does not fit the hooks: ")
    assert "register_methds" in said


def test_wrong_class_is_refused(tmp_path: Path) -> None:
    source = "from lightning_ft import hookimpl\n\n@hookimpl\ndef register_methods():\n    return [int]\n"
    assert python(ERROR, distribution(tmp_path, "odd", source)) == (
        "Plugin 'odd' returned <class 'int'> from register_methods; expected a subclass of Method."
    )


def test_duplicate_class_names_both_plugins(site: Path, tmp_path: Path) -> None:
    assert python(ERROR, site, distribution(tmp_path, "twin", METHOD)) == (
        "Expected one method named 'Last_Norm', got two: from plugin 'eggplant' and from plugin 'twin'; "
        "switch one off with LIGHTNING_FT_DISABLE_PLUGINS=twin."
    )


def test_duplicate_entry_point_names_both_distributions(site: Path, tmp_path: Path) -> None:
    said = python(ERROR, site, distribution(tmp_path, "twin", METHOD, entry="eggplant"))
    pattern = (
        r"Expected one distribution for the lightning_ft entry point 'eggplant', got two: (.+) and (.+); uninstall one, "
        r"or set LIGHTNING_FT_DISABLE_PLUGINS=eggplant\."
    )
    match = re.fullmatch(pattern, said)
    assert match is not None, said
    assert set(match.groups()) == {"lightning-ft-eggplant 0.3.1", "twin 1.0"}


def test_the_guides_code_is_the_eggplants() -> None:
    guide = (ROOT / "plugins" / "README.md").read_text()
    sources = [path.read_text() for path in (EGGPLANT / "lightning_ft_eggplant").glob("*.py")]
    blocks = re.findall(r"```python\n# eggplant\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) == 2
    assert all(any(block.strip() in source for source in sources) for block in blocks)
    assert sum(line.strip() != "" for block in blocks for line in block.splitlines()) <= 30
    project = re.search(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert project is not None
    assert project[1].strip() in (EGGPLANT / "pyproject.toml").read_text()
