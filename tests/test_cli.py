"""The command as users run it: in a process of its own, with a real plugin on the path, without torch where none is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_ft.cli import BROKEN_PIPE, CORE, main
from lightning_ft.errors import CheckFailedError, RunInterruptedError, TrainingError, UsageError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "lightning", "transformers", "peft"}
PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
from lightning_ft import hookimpl
from lightning_ft.builtin import Full

@dataclass(frozen=True)
class Omelette(Full):
    """Break some eggs."""

    name: ClassVar[str] = "omelette"
    default: ClassVar[bool] = False
    eggs: int = 3
    """How many."""
    spices: tuple[str, ...] = ()
    """Which."""

    def __post_init__(self):
        if self.eggs < 1:
            raise ValueError(f"expected eggs to be at least 1; got {self.eggs}")

@hookimpl
def register_methods():
    return [Omelette]

@hookimpl
def register_metrics():
    from lightning_ft.metric import RowMetric

    class Same(RowMetric):
        name = "same"
        percent = True

        def score(self, row):
            return float(row.prediction in row.references)

    return [Same]
'''
COMMAND = """
import sys

def main(argv):
    print("whisked", *argv)
    return 3
"""


def install(folder: Path, name: str, modules: dict[str, str], points: str) -> None:
    """What pip leaves of a distribution: its modules and its metadata."""
    for path, text in modules.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\nSummary: All about {name}.\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture(scope="session")
def eggs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three plugin distributions: a good one, one that does not import, one whose module is gone."""
    folder = tmp_path_factory.mktemp("eggs")
    modules = {"omelette_plugin/__init__.py": PLUGIN, "omelette_plugin/whisk.py": COMMAND}
    modules["omelette_plugin/presets/brunch.yaml"] = "method: {name: omelette, eggs: 12}\nepochs: 5\n"
    points = "[lightning_ft]\nomelette = omelette_plugin\n[lightning_ft.commands]\nwhisk = omelette_plugin.whisk\n"
    install(folder, "omelette-dist", modules, points)
    install(folder, "rotten-dist", {"rotten.py": "raise OSError('it smells')\n"}, "[lightning_ft]\nrotten = rotten\n")
    install(folder, "eaten-dist", {}, "[lightning_ft]\neaten = eaten\n")
    return folder


Result = subprocess.CompletedProcess[str]


def run(*argv: str, path: Path | None = None, env: dict[str, str] | None = None, stdin: str = "", code: str = "") -> Result:
    """The command in a process without installed plugins beyond those of `path`."""
    found = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, filter(None, (path, ROOT)))), "COLUMNS": "100"}
    found["LIGHTNING_FT_PLUGINS_AUTOLOAD"] = "0" if path is None else "1"
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "lightning_ft"]
    return subprocess.run([*command, *argv], input=stdin, capture_output=True, text=True, env=found | (env or {}), timeout=300)


MODULES = """
import sys
from lightning_ft.cli import main
code = main(sys.argv[1:])
print(code, *sorted({name.split(".")[0] for name in sys.modules}), sep=",", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("plugins", "list"), 0),
        (("fit", "--help"), 0),
        (("fit", "base", "--data", "x", "--print_confg"), 2),
        (("fit", "base", "--data", "x", "--epochs", "three"), 2),
        (("fit", "base", "--data", "x", "--method", "fulll"), 2),
        (("fit", "base", "--data", "x", "--trainer.max_epochs", "2", "--epochs", "3"), 2),
        (("fit", "base", "--data", "x", "--trainer.logger", "os.system"), 2),
        (("fit",), 2),
        (("ftt",), 2),
        (("generate", "x", "--temprature", "1"), 2),
        *(((name, "--help"), 0) for name in CORE),
    ],
)
def test_help_and_typos_import_nothing_heavy(argv: tuple[str, ...], code: int) -> None:
    result = run(*argv, code=MODULES)
    found, *modules = result.stderr.strip().splitlines()[-1].split(",")
    assert int(found) == code, result.stderr
    assert not HEAVY & set(modules)
    assert bool(result.stdout) is (code == 0)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("fitt",), "Expected a command of `lightning-ft --help`, got 'fitt'. Did you mean 'fit'?"),
        (("--modl", "x"), "Expected a command of `lightning-ft --help`, got a flag before the command."),
        (("generate", "--model", "x", "--promt", "y"), "Expected an option of `lightning-ft generate --help`, got '--promt'. "
         "Did you mean '--prompt'?"),
        (("generate", "--mod", "x"), "Expected an option of `lightning-ft generate --help`, got '--mod'. "
         "Did you mean '--model'?"),
        (("generate", "x", "--seed", "y"), "Expected --seed to be a whole number; got 'y'."),
        (("generate", "--prompt", "y"), "Expected --model, got nothing; type `lightning-ft generate --model RUN "
         "--prompt TEXT`."),
        (("generate", "x", "--model", "y"), "Expected one value of --model, got 'x' and 'y'; give it once."),
        (("chat", "x", "--model", "y"), "Expected one value of --model, got 'x' and 'y'; give it once."),
        (("evaluate", "x", "--model", "y"), "Expected one value of --model, got 'x' and 'y'; give it once."),
        (("score", "x", "--predictions", "y", "--metrics", "z"), "Expected one value of --predictions, got 'x' and 'y'; "
         "give it once."),
        (("quickstart", "--epochs", "0"), "Expected --epochs to be above 0; got 0.0."),
        (("generate", "x"), "Expected a prompt by --prompt, --prompts or standard input; got none."),
        (("chat",), "Expected --model, got nothing; type `lightning-ft chat --model RUN`."),
        (("evaluate", "x"), "Expected --data, got nothing; type `lightning-ft evaluate --model RUN --data FILE`."),
        (("score", "x"), "Expected --metrics, got nothing; `lightning-ft score --help` shows the options."),
        (("plugins", "lst"), "Expected what to be one of list; got 'lst'. Did you mean 'list'?"),
    ],
)  # fmt: skip
def test_wrong_commands_are_one_sentence(argv: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"lightning-ft: {sentence}\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingError("The loss is NaN."), 1, "lightning-ft: The loss is NaN."),
        (CheckFailedError("It got worse."), 3, "lightning-ft: It got worse."),
        (RunInterruptedError("Stopped at step 3.", 15), 143, "lightning-ft: Stopped at step 3."),
        (KeyboardInterrupt(), 130, "lightning-ft: Interrupted."),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "lightning-ft: ZeroDivisionError: by zero; run again with --debug for the traceback.",
        ),
        (SystemExit(4), 4, ""),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_ft.cli import doctor

    def fail(argv: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "main", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err.strip() == said
    if code in (1, 3, 143):
        assert main(["doctor", "--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_what_all_processes_would_say_is_said_by_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_ft.cli import doctor

    def fail(argv: object) -> int:
        raise UsageError("Typed wrongly.") if argv else TrainingError("Died here.")

    monkeypatch.setattr(doctor, "main", fail)
    for rank, words, said in (("0", ["x"], "Typed wrongly."), ("1", ["x"], ""), ("1", [], "Died here.")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["doctor", *words]) == (2 if words else 1)
        assert capsys.readouterr().err == (f"lightning-ft: {said}\n" if said else "")


def test_a_closed_pipe_is_quiet() -> None:
    code = "import os, sys\nfrom lightning_ft.cli import main\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
    code += "sys.exit(main(['--help']))"
    result = run(code=code)
    assert (result.returncode, result.stderr) == (BROKEN_PIPE, "")


def test_commands_of_plugins_are_listed_and_run(eggs: Path) -> None:
    listed = run("--help", path=eggs, code=MODULES)
    assert "  whisk\n      omelette-dist 1.5: All about omelette-dist." in listed.stdout
    assert "omelette_plugin" not in listed.stderr
    result = run("whisk", "--hard", path=eggs)
    assert (result.returncode, result.stdout) == (3, "whisked --hard\n")
    off = run("whisk", path=eggs, env={"LIGHTNING_FT_PLUGINS_AUTOLOAD": "0"})
    assert off.returncode == 2


def test_plugins_list_reads_metadata_and_check_imports(eggs: Path) -> None:
    result = run("plugins", "list", "--json", path=eggs, env={"LIGHTNING_FT_DISABLE_PLUGINS": "rotten"}, code=MODULES)
    states = {line["name"]: line for line in json.loads(result.stdout)}
    assert (states["omelette"]["state"], states["omelette"]["version"]) == ("enabled", "1.5")
    assert states["omelette"]["commands"] == ["whisk"]
    assert states["rotten"]["state"] == "disabled"
    assert states["eaten"]["state"] == "broken"
    assert "module 'eaten' is not on the path" in states["eaten"]["error"]
    assert not ({"omelette_plugin"} | HEAVY) & set(result.stderr.split(","))

    checked = run("plugins", "list", "--check", path=eggs)
    assert checked.returncode == 1
    assert "methods: omelette" in checked.stdout
    assert "metrics: same" in checked.stdout
    assert "Plugin 'rotten' (rotten-dist 1.5) failed to import: OSError: it smells" in checked.stdout


def test_a_broken_plugin_stops_fit_but_not_help(eggs: Path) -> None:
    result = run("fit", "base", "--data", "x", "--method", "full", path=eggs)
    assert result.returncode == 2
    assert "set LIGHTNING_FT_DISABLE_PLUGINS=" in result.stderr
    assert "Broken plugins" in run("fit", "--help", path=eggs).stdout


def test_presets_and_options_of_plugins(eggs: Path) -> None:
    def fit(*argv: str) -> Result:
        env = {"LIGHTNING_FT_DISABLE_PLUGINS": "rotten,eaten"}
        return run("fit", "base", "--data", "x", *argv, path=eggs, env=env)

    shown = fit("--config", "brunch", "--method.spices", "salt", "pepper", "--print_config").stdout
    assert "method:\n  name: omelette\n  eggs: 12\n  spices: !!python" not in shown
    assert "eggs: 12" in shown
    assert "- salt\n  - pepper" in shown
    assert "epochs: 5.0" in shown
    other = fit("--config", "brunch", "--method", "full", "--print_config").stdout
    assert "eggs" not in other
    assert "--method.eggs" in fit("--method", "omelette", "--help").stdout
    assert "--optimizer.momentum" in fit("--optimizer", "sgd", "--help").stdout
    wrong = fit("--method", "omelette", "--method.egs", "2")
    assert wrong.stderr == (
        "lightning-ft: Expected --method.egs to be an option of method omelette (eggs, spices); got 'egs'. "
        "Did you mean 'eggs'?\n"
    )
    assert fit("--method", "omelette", "--method.eggs", "x").stderr == (
        "lightning-ft: Expected --method.eggs to be a whole number; got 'x'.\n"
    )
    assert fit("--method", "omelette", "--method.eggs", "0").stderr == (
        "lightning-ft: --method.eggs: method omelette: expected eggs to be at least 1; got 0\n"
    )


def test_score_measures_files_of_anybody(eggs: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [
        {"prediction": "a", "reference": "a"},
        {"prediction": "b", "references": ["c", "b"]},
        {"prediction": "x", "reference": "y"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    env = {"LIGHTNING_FT_DISABLE_PLUGINS": "rotten,eaten"}
    result = run("score", str(file), "--metrics", "SAME", path=eggs, env=env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"3 rows of {file}",
        "metric    value      std     min       max  rows",
        "------  -------  -------  ------  --------  ----",
        "same    66.67 %  47.14 %  0.00 %  100.00 %     3",
    ]
    exact = json.loads(run("score", "--predictions", str(file), "--metrics", "same", "--json", path=eggs, env=env).stdout)
    assert exact["rows"] == 3
    assert exact["same"] == pytest.approx(2 / 3)


def test_doctor_finds_a_broken_plugin_and_a_missing_requirement(eggs: Path, tmp_path: Path) -> None:
    install(tmp_path, "hungry-dist", {"hungry.py": ""}, "[lightning_ft]\nhungry = hungry\n")
    with (tmp_path / "hungry_dist-1.5.dist-info" / "METADATA").open("a") as metadata:
        metadata.write("Requires-Dist: no-such-distribution>=2\nRequires-Dist: pluggy>=99\n")
    env = {"PYTHONPATH": os.pathsep.join(map(str, (eggs, tmp_path, ROOT)))}
    result = run("doctor", "--json", path=eggs, env=env)
    assert result.returncode == 1
    found = {line["what"]: line for line in json.loads(result.stdout)}
    assert found["plugin rotten"]["state"] == "wrong"
    assert "pip uninstall rotten-dist" in found["plugin rotten"]["mend"]
    assert found["no-such-distribution"]["mend"].endswith("-m pip install 'no-such-distribution>=2'")
    assert found["pluggy"]["detail"].endswith("hungry-dist needs >=99")
    assert found["plugin omelette"]["state"] == "ok"
    assert found["bf16"]["detail"].startswith(("fast", "slow"))


def test_doctor_mends_a_torch_without_cuda_naming_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["doctor", "--json"])
    (found,) = [line for line in json.loads(capsys.readouterr().out) if line["what"] == "gpu"]
    assert "pip install --upgrade torch, in the build for your CUDA version" in found["mend"]
    assert "://" not in found["mend"]


def test_prompts_may_hold_the_line_separators_of_unicode(tmp_path: Path) -> None:
    from lightning_ft.cli.generate import _read_prompts

    file = tmp_path / "p.jsonl"
    prompts = ["one\u2028two\x85three", "four"]
    text = "".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\r\n" for p in prompts)
    file.write_bytes(text.encode())
    assert _read_prompts(str(file)) == prompts


def test_chat_keeps_the_turns_and_runs_its_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from lightning_ft.cli.chat import Conversation, repl

    seen = []

    def answer(messages: list[object]) -> list[str]:
        seen.append([(m.role, m.content) for m in messages])  # type: ignore[attr-defined]  # a message
        return ["echo ", messages[-1].content]  # type: ignore[attr-defined]  # as above

    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\nthere\n/system Be kind.\nyou\n/reset\n/rest\nme\n/exit\nnever\n"))
    repl(Conversation(answer))  # type: ignore[arg-type]  # lists instead of iterators
    assert seen == [
        [("user", "hi")],
        [("user", "hi"), ("assistant", "echo hi"), ("user", "there")],
        [("system", "Be kind."), ("user", "you")],
        [("system", "Be kind."), ("user", "me")],
    ]
    out = capsys.readouterr().out
    assert "echo there\n" in out
    assert "got '/rest'. Did you mean '/reset'?" in out
    assert "never" not in out


def test_generate_and_chat_answer_with_the_shipped_model(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "Hello"}\n{"prompt": "track my order"}\n')
    flags = ("--max_new_tokens", "5")
    many = run("generate", "embedded", "--prompts", str(prompts), "--output", str(tmp_path / "out"), *flags)
    assert many.returncode == 0, many.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["Hello", "track my order"]
    assert all(row["prediction"] for row in rows)
    # One prompt at a time in both: in bf16 the answer may depend on the batch.
    piped = run("generate", "embedded", *flags, stdin="Hello\n")
    talk = run("chat", "embedded", *flags, stdin="Hello\n/exit\n")
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout == piped.stdout != "\n"
