"""Damaged models, adapters, run folders and plugins through the real command line; one sentence each, nothing half-written."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_ft.testing.models import Family
    from tests.e2e.conftest import Cli, Fitted, Refused, Result

GOOD = '{"instruction": "a", "output": "b"}\n'
SHORT = ("--max_steps", "2", "--precision", "fp32", "--verdict_rows", "2", "--max_new_tokens", "4", "--batch_size", "4")


@pytest.fixture(autouse=True)
def _clean(clean: None) -> None:
    """Every test here works in an empty folder and leaves nothing half-written."""


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def changed(model: Path, **files: str | bytes | None) -> Path:
    """A copy of a model folder with other files (`config__json` is config.json; None: without it)."""
    target = Path("model")
    shutil.copytree(model, target)
    for key, content in files.items():
        path = target / key.replace("__", ".")
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return target


# ---- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"tokenizer__json": None, "tokenizer_config__json": None}, ("Expected a tokenizer in 'model'", "copy the base")),
        ({"model__safetensors": None}, ("Expected weights in 'model' (model.safetensors", "--from_scratch true")),
        ({"config__json": "{nope"}, ("model/config.json:1: expected JSON", "copy the folder again")),
        ({"config__json": '{\n"a": 1,\n}'}, ("model/config.json:3: expected JSON",)),
        ({"config__json": "[]"}, ("model/config.json:1: expected a JSON object, got an empty list",)),
        ({"config__json": b"\xff\xfe"}, ("model/config.json: expected JSON in UTF-8, got the byte 0xff at byte 0",)),
        ({"config__json": "{}"}, ("Expected 'model/config.json' to name its 'model_type'",)),
        ({"config__json": '{"model_type": "no_such"}'}, ("'model'", "`no_such`", "--model")),
        ({"config__json": '{"model_type": "llama", "hidden_size": "big"}'}, ("'model'", "hidden_size")),
        ({"config__json": '{"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}'}, ("auto_map", "--trust_remote_code")),
        ({"tokenizer__json": '{"a":'}, ("model/tokenizer.json:1: expected JSON",)),
        ({"tokenizer__json": "{}"}, ("Expected a tokenizer in 'model'",)),
        ({"tokenizer_config__json": "{"}, ("model/tokenizer_config.json:1: expected JSON",)),
    ],
)  # fmt: skip
def test_model_folders_that_are_damaged(
    refused: Refused, cli: Cli, models: dict[Family, Path], data: Path, files: dict[str, Any], parts: tuple[str, ...]
) -> None:
    refused(cli("fit", changed(models["llama"], **files), "--data", data, *SHORT), *parts)


@pytest.mark.parametrize("cut", [3, 1000, -1000])
def test_weights_that_are_damaged(refused: Refused, cli: Cli, models: dict[Family, Path], data: Path, cut: int) -> None:
    weights = (models["llama"] / "model.safetensors").read_bytes()[:cut]
    result = cli("fit", changed(models["llama"], model__safetensors=weights), "--data", data, *SHORT)
    refused(result, "Expected a causal language model in 'model'", "copy the folder again", at_once=False)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"num_hidden_layers": 3}, ("but 9 are missing (model.layers.2.",)),
        ({"intermediate_size": 32}, ("to have the shapes that its config.json says",)),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            ("in few bits already (gptq)", "type --quantize nf4 for few bits"),
        ),
        ({"model_type": "t5"}, ("Expected a causal language model in 'model'", "name one with --model")),
    ],
)
def test_weights_that_are_not_those_of_the_config(
    refused: Refused, cli: Cli, models: dict[Family, Path], data: Path, change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    """transformers itself would train on random numbers where weights are missing."""
    config = json.loads((models["llama"] / "config.json").read_text()) | change
    result = cli("fit", changed(models["llama"], config__json=json.dumps(config)), "--data", data, *SHORT)
    refused(result, *parts, at_once=False)
    assert not Path("runs").exists()


def test_models_that_are_none(refused: Refused, cli: Cli, data: Path) -> None:
    Path("empty").mkdir()
    write("file.bin", "x")
    for name in ("nowhere", "./a/b/c", "a\0b"):
        refused(cli("fit", name, "--data", data), "Expected --model to be a model folder, a run folder, a hub id")
    refused(cli("fit", "file.bin", "--data", data), "Expected --model to be a folder, got the file 'file.bin'")
    refused(cli("fit", "empty", "--data", data), "Expected 'empty' to hold config.json, adapter_config.json or run.json")
    refused(cli("fit", "--data", data), "Expected --model, got nothing")
    refused(cli("fit", "a", "b", "--data", data), "Expected one model, got 'a' and 'b'")
    for command in (("fit", "owner/name", "--data", data), ("generate", "owner/name", "--prompt", "x")):
        refused(cli(*command), "in 'owner/name' on the hub or in the local cache, and could reach neither", "--model FOLDER")


def test_adapters_that_are_damaged(refused: Refused, cli: Cli, fitted: Fitted, models: dict[Family, Path]) -> None:
    shutil.copytree(fitted.folder / "final_model", "adapter")
    config = Path("adapter/adapter_config.json")
    values = json.loads(config.read_text())

    def generate() -> Result:
        return cli("generate", "adapter", "--prompt", "x", "--max_new_tokens", "2")

    for base, why in (("/gone", "it is not there"), (str(fitted.folder / "final_model"), "it is an adapter itself")):
        config.write_text(json.dumps(values | {"base_model_name_or_path": base}))
        refused(generate(), f"Expected the base model '{base}'", why, "base_model_name_or_path")
    config.write_text(json.dumps(values | {"base_model_name_or_path": None}))
    refused(generate(), "to name its base model in 'base_model_name_or_path'; it does not.")
    config.write_text(json.dumps(values | {"base_model_name_or_path": str(models["gpt2"])}))
    refused(generate(), f"Expected an adapter of '{models['gpt2']}' in 'adapter'")
    config.write_text("{")
    refused(generate(), "adapter/adapter_config.json:1: expected JSON")
    config.write_text(json.dumps(values))
    weights = Path("adapter/adapter_model.safetensors")
    other = {name.replace(".layers.", ".blocks."): tensor for name, tensor in load_file(weights).items()}
    save_file(other, weights)
    refused(generate(), "in 'adapter', got: Found missing adapter keys", at_once=False)
    weights.write_bytes(b"short")
    refused(generate(), "in 'adapter'")


# ---- run folders ------------------------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_written(
    refused: Refused, cli: Cli, models: dict[Family, Path], data: Path, fitted: Fitted
) -> None:
    write("file", "x")
    fit = ("fit", models["llama"], "--data", data, *SHORT, "--output")
    refused(cli(*fit, "file"), "Expected 'file' to be a folder that can be written, but 'file' is a file; name another one")
    refused(cli(*fit, "file/run"), "is a file; name another one with --output.")
    if Path("/proc/self").is_dir():
        refused(cli(*fit, "/proc/none/run"), "Expected '/proc/none/run' to be a folder that can be written", at_once=False)
    before = (fitted.folder / "run.json").read_bytes()
    refused(cli(*fit, fitted.folder), "already holds a run; type --resume", "or name another --output.")
    assert (fitted.folder / "run.json").read_bytes() == before
    answer = ("--prompt", "x", "--max_new_tokens", "2", "--output", "file")
    refused(cli("generate", fitted.folder, *answer), "Expected 'file' to be a folder that can be written")
    refused(cli("evaluate", fitted.folder, "--data", data, "--output", "file"), "Expected 'file' to be a folder")


def test_runs_that_cannot_be_resumed(refused: Refused, cli: Cli, fitted: Fitted) -> None:
    refused(cli("fit", "--resume", fitted.folder), "has finished; to train on from its result type --model")
    run = Path("run")
    shutil.copytree(fitted.folder, run)
    record = json.loads((run / "run.json").read_text())
    record["status"] = "interrupted"
    for argv, steps, what in (
        (("--data", write("other.jsonl", GOOD)), 6, "Expected the same data and tokens as run 'run' had"),
        ((), 5, "Expected the same number of steps as run 'run' had (5), got 6"),
    ):
        (run / "run.json").write_text(json.dumps(record | {"total_steps": steps}))
        refused(cli("fit", "--resume", run, *argv), what, "--model run", at_once=False)
    with (run / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 42 on box")
        file.flush()
        for taken in (("--resume", run), ("--config", run / "config.yaml", "--output", run)):
            refused(cli("fit", *taken), "Run folder 'run' is in use by process 42 on box; wait for it", at_once=False)
        file.truncate(0)
    (run / ".lock").unlink()
    (run / "run.json").write_text("{")
    refused(cli("fit", "--resume", run), "run.json' to be a run's record", at_once=False)


def test_a_run_folder_without_a_model_is_refused(refused: Refused, cli: Cli) -> None:
    write("run/run.json", "{}")
    said = "Expected run folder 'run' to hold final_model/ or a whole checkpoint; it holds neither."
    assert refused(cli("generate", "run", "--prompt", "x")) == said


# ---- the other commands -----------------------------------------------------------------------------------------------


def test_prompts_and_sampling(refused: Refused, cli: Cli, fitted: Fitted) -> None:
    generate = ("generate", fitted.folder)
    refused(cli(*generate), "Expected a prompt by --prompt, --prompts or standard input; got none.")
    for prompt in ("", "  \n"):
        refused(cli(*generate, "--prompt", prompt), "Expected at least one prompt, and none of them empty")
    refused(cli(*generate, "--prompts", "gone.txt"), "gone.txt: expected a text file of prompts; No such file or directory.")
    refused(cli(*generate, "--prompts", write("p.txt", b"\xff")), "p.txt: expected a text file of prompts; byte 0 is no UTF-8.")
    refused(
        cli(*generate, "--prompts", write("p.jsonl", '{"prompt": 3}')), "p.jsonl:1: expected 'prompt' to be text; got a number."
    )
    for flag, value, wanted in (
        ("--max_new_tokens", "0", "at least 1"), ("--temperature", "-1", "at least 0"), ("--temperature", "nan", "at least 0"),
        ("--top_p", "2", "at most 1"), ("--repetition_penalty", "0", "above 0"),
    ):  # fmt: skip
        refused(cli(*generate, "--prompt", "x", flag, value), f"Expected {flag} to be", wanted)
        refused(cli("chat", fitted.folder, flag, value, stdin="x\n"), f"Expected {flag} to be", wanted)


def test_what_can_be_measured(refused: Refused, cli: Cli, fitted: Fitted, data: Path) -> None:
    evaluate = ("evaluate", fitted.folder, "--data", data)
    refused(cli(*evaluate, "--max_rows", "0"), "Expected --max_rows to be at least 1; got 0.")
    refused(cli(*evaluate, "--metrics", "bleuu"), "Expected --metrics to be one of ")
    refused(cli(*evaluate, "--task", "blah"), "Expected --task to be one of ")
    refused(cli("evaluate", fitted.folder, "--data", "gone.jsonl"), "gone.jsonl: expected a file or folder")
    file = write("p.jsonl", '{"prediction": "a", "reference": "a"}\n')
    refused(cli("score", file, "--metrics", ","), "Expected --metrics to name at least one metric")
    refused(cli("score", write("q.jsonl", "\n"), "--metrics", "exact_match"), "expected at least one row of predictions")
    assert not list(fitted.folder.glob("eval_*"))


# ---- plugins ----------------------------------------------------------------------------------------------------------

TWIN = """
from dataclasses import dataclass
from lightning_ft import hookimpl
from lightning_ft.builtin import Full

@dataclass(frozen=True)
class Twin(Full):
    name = "full"

@hookimpl
def register_methods():
    return [Twin]
"""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Installs a plugin of one module for this test."""
    from lightning_ft.registry import registry

    def install(name: str, source: str) -> None:
        site = Path("site").resolve()
        write(f"site/{name}.py", source)
        write(f"site/{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        write(f"site/{name}-1.0.dist-info/entry_points.txt", f"[lightning_ft]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(site))
        registry.cache_clear()

    yield install
    registry.cache_clear()


@pytest.mark.parametrize(
    ("name", "source", "parts"),
    [
        ("twin_plugin", TWIN, ("Expected one method named 'full', got two", "'lightning_ft.defaults'", "'twin_plugin'")),
        ("rotten_plugin", "import no_such", ("Plugin 'rotten_plugin' (rotten_plugin 1.0) failed to import", "'no_such'")),
    ],
)
def test_plugins_that_cannot_be_used(
    refused: Refused, cli: Cli, models: dict[Family, Path], data: Path, plugin: Callable[[str, str], None],
    name: str, source: str, parts: tuple[str, ...],
) -> None:  # fmt: skip
    plugin(name, source)
    mend = f"LIGHTNING_FT_DISABLE_PLUGINS={name}"
    refused(cli("fit", models["llama"], "--data", data, "--method", "full"), *parts, mend)


# ---- names of files ---------------------------------------------------------------------------------------------------


def test_spaces_and_unicode_in_every_path(cli: Cli, models: dict[Family, Path], data: Path) -> None:
    model = Path("m\u00f6del mit Leerzeichen")
    shutil.copytree(models["llama"], model)
    rows = write("d\u00e4ta dir/r\u00f6ws [1] \u6570.jsonl", data.read_bytes())
    argv = ("--data", rows, *SHORT, "--verdict_rows", "0", "--output", "\u51fa\u529b/run 1")
    result = cli("fit", model, *argv)
    assert result.code == 0, result.err
    answer = cli("generate", "\u51fa\u529b/run 1", "--prompt", "Wo ist \u6570?", "--max_new_tokens", "3", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["prompt"] == "Wo ist \u6570?"
