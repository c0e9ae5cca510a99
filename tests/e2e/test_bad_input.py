"""Wrong input through the real command line: one sentence that says place, finding and mend; nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lightning_ft.testing.models import Family
    from tests.e2e.conftest import Cli, Refused

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


# ---- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("rows.jsonl", "", ("rows.jsonl: expected at least one row, got an empty file",)),
        ("rows.jsonl", "\n\n \n", ("rows.jsonl: expected at least one row",)),
        ("rows.jsonl", GOOD + '{"instruction": \n', ("rows.jsonl:2: expected valid JSON", "mend it", "--on_error skip")),
        ("rows.jsonl", GOOD + '{"instruction": "a", "output": NaN}\n', ("rows.jsonl:2: ",)),
        ("rows.jsonl", b'{"output": "\xff", "instruction": "b"}\n', ("rows.jsonl:1: expected UTF-8", "0xff at byte 12 of the")),
        ("rows.jsonl", GOOD + "[1, 2]\n", ("rows.jsonl:2: expected an object", "got a list")),
        ("rows.jsonl", GOOD + "7\n", ("rows.jsonl:2: expected an object", "got a number")),
        ("rows.jsonl", GOOD + '{"instruction": "a"}\n', ("rows.jsonl:2: expected a column 'output'", "got instruction")),
        ("rows.jsonl", GOOD + '{"instruction": "a", "output": 7}\n', ("rows.jsonl:2: expected 'output' to be text, got",)),
        ("rows.jsonl", GOOD + '{"instruction": "", "output": "b"}\n', ("rows.jsonl:2: expected 'instruction' to hold text",)),
        ("rows.jsonl", '{"foo": "a", "bar": "b"}\n', ("rows.jsonl: expected the columns of a task", "bar, foo", "--task")),
        (
            "rows.jsonl",
            '{"messages": [{"role": "user", "content": "hi"}]}\n',
            ("rows.jsonl:1: expected 'messages' to have at least one assistant turn", "got turns of user"),
        ),
        (
            "rows.jsonl",
            '{"messages": [{"role": "system", "content": "hi"}]}\n',
            ("rows.jsonl:1: expected 'messages' to have at least one assistant turn", "got turns of system"),
        ),
        ("rows.jsonl", '{"messages": "hello"}\n', ("rows.jsonl:1: ", "'messages'")),
        ("rows.csv", "instruction,output\na,b\nc\n", ("rows.csv:3: ",)),
        ("rows.parquet", "PAR1 but not really", ("rows.parquet",)),
        ("rows.jsonl.gz", "not zipped", ("rows.jsonl.gz",)),
        ("rows.xlsx", "x", ("rows.xlsx: expected a data file (.jsonl", "convert")),
        ("folder/README.md", "hi", ("folder: expected a folder with data files (.jsonl", "got none in it")),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(
    refused: Refused, cli: Cli, models: dict[Family, Path], name: str, content: str | bytes, parts: tuple[str, ...]
) -> None:
    path = write(name, content)
    source = path.parent if path.parent != Path() else path
    refused(cli("fit", models["llama"], "--data", source, *SHORT), *parts)


def test_data_that_is_not_there(refused: Refused, cli: Cli, models: dict[Family, Path]) -> None:
    write("rows.jsonl", GOOD)
    fit = ("fit", models["llama"], "--data")
    refused(cli(*fit, "row.jsonl"), "row.jsonl: expected a file or folder", "Did you mean 'rows.jsonl'?")
    refused(cli(*fit, "nowhere/rows.jsonl"), "there is no folder 'nowhere'")
    refused(cli(*fit, "*.csv"), "*.csv: expected data files that match the pattern, got none")
    refused(cli(*fit, ""), "Expected --data to be names that are not empty")
    refused(cli("fit", models["llama"]), "Expected --data, got nothing; type `lightning-ft fit --model PATH_OR_HUB_ID")
    refused(cli(*fit, "rows.jsonl", "--val_data", "./rows.jsonl"), "Expected each file once", "in --data and in --val_data")
    refused(cli(*fit, "rows.jsonl", "--test_data", "gone.jsonl"), "gone.jsonl: expected a file or folder")


def test_many_bad_rows_are_listed_by_line(cli: Cli, models: dict[Family, Path]) -> None:
    path = write("rows.jsonl", GOOD * 30 + '{"instruction": "a"}\n' * 25)
    result = cli("fit", models["llama"], "--data", path)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert [line.split(": ")[0].strip() for line in result.err.splitlines() if "expected a column 'output'" in line] == [
        f"rows.jsonl:{n}" for n in range(31, 51)
    ]
    assert result.err.strip().endswith("and 5 more")
    assert not Path("runs").exists()


def test_splits_without_rows(refused: Refused, cli: Cli, models: dict[Family, Path], data: Path) -> None:
    fit = ("fit", models["llama"], "--data", data)
    refused(cli(*fit, "--split", "0,0.5,0.5"), "Expected at least one training row, got none", "--split", at_once=False)
    refused(cli(*fit, "--split", "0.5,0.6"), "Expected --split to be 2 or 3 shares that add up to 1")
    result = cli("test", models["llama"], "--data", data, "--split", "0.9,0.1")
    refused(result, "Expected rows in the test split, got none", "--test_data", at_once=False)
    assert not Path("runs").exists()


def test_rows_that_max_length_empties_are_a_check_that_says_no(
    refused: Refused, cli: Cli, models: dict[Family, Path], data: Path
) -> None:
    fit = ("fit", models["llama"], "--data", data, *SHORT, "--max_length")
    said = refused(cli(*fit, "8"), "Expected --max_length 8 to cut at most 5 % of the rows", "got 100 %", code=3)
    advised = said.rpartition("type --max_length ")[2].split()[0]
    assert "--max_lost" not in said.rpartition(";")[2]  # accepting it would leave nothing
    refused(
        cli(*fit, "8", "--max_lost", "1"),
        "expected at least one row with a supervised token",
        f"--max_length {advised}",
        at_once=False,
    )
    refused(cli(*fit, "1"), "Expected --max_length of at least 2 tokens, got 1.")
    refused(cli(*fit, "0"), "Expected --max_length to be above 0; got 0.")
    refused(cli(*fit, "100000"), "Expected --max_length from 1 to 256, the model's positions; got 100000.")
    result = cli(*fit, advised, "--verdict_rows", "0", "--preflight", "false", "--save_every", "0")
    assert result.code == 0, result.err


def test_a_row_above_batch_tokens_is_refused_with_what_to_type(
    cli: Cli, refused: Refused, models: dict[Family, Path], data: Path
) -> None:
    fit = ("fit", models["llama"], "--data", data, *SHORT, "--batch_tokens")
    said = refused(cli(*fit, "20"), "Expected --batch_tokens of at least ", "got 20, which 24 rows exceed", at_once=False)
    needed = said.partition("at least ")[2].partition(",")[0]
    assert cli(*fit, needed).code == 0


def test_fsdp_says_that_it_is_fsdp2(cli: Cli, refused: Refused, models: dict[Family, Path], data: Path) -> None:
    result = cli("fit", models["llama"], "--data", data, "--strategy", "fsdp", "--method", "vera")
    refused(result, "which --strategy fsdp2 does not keep; type ddp.", at_once=False)
    assert result.err.startswith("strategy: fsdp2, which has taken the place of fsdp\n")


def test_more_processes_than_rows(cli: Cli, refused: Refused, models: dict[Family, Path]) -> None:
    fit = ("fit", models["llama"], "--data", write("two.jsonl", GOOD * 2), "--split", "[1.0,0.0]")
    refused(
        cli(*fit, "--devices", "3"),
        "as many training rows as processes that share them, 3, got 2; type --devices 2",
        at_once=False,
    )


def test_a_single_row_is_enough_to_train(cli: Cli, models: dict[Family, Path]) -> None:
    result = cli("fit", models["llama"], "--data", write("one.jsonl", GOOD), *SHORT)
    assert result.code == 0, result.err
    assert "data: 1 rows read: 1 train, 0 validation, 0 test" in result.err
    assert "verdict: none (no test rows" in result.err


# ---- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (("--epoch", "3"), ("got '--epoch'. Did you mean '--epochs'?",)),
        (("--learning_rate", "-1"), ("Expected --learning_rate to be above 0; got -1.0.",)),
        (("--learning_rate", "nan"), ("Expected --learning_rate to be a finite number; got nan.",)),
        (("--learning_rate", "inf"), ("Expected --learning_rate to be a finite number; got inf.",)),
        (("--epochs", "inf"), ("Expected --epochs to be a finite number; got inf.",)),
        (("--epochs", "0"), ("Expected --epochs to be above 0; got 0.0.",)),
        (("--batch_size", "0"), ("Expected --batch_size to be above 0; got 0.",)),
        (("--batch_tokens", "-5"), ("Expected --batch_tokens to be above 0; got -5.",)),
        (("--max_steps", "1.5"), ("Expected --max_steps to be", "got '1.5'")),
        (("--workers", "-1"), ("Expected --workers to be at least 0; got -1.",)),
        (("--seed", "-1"), ("Expected --seed to be at least 0; got -1.",)),
        (("--seed", str(2**32)), ("Expected --seed to be at most 4294967295; got 4294967296.",)),
        (("--name", "../../escape"), ("Expected --name to be the name of a folder under runs/", "--output")),
        (("--monitor", "val_los"), ("a validation measures (val_loss, val_token_accuracy, ", "Did you mean 'val_loss'?")),
        (("--precision", "fp8"), ("Expected --precision to be one of auto, fp32, bf16, fp16; got 'fp8'.",)),
        (("--strategy", "dpd"), ("Expected --strategy to be one of auto, ", "got 'dpd'. Did you mean 'ddp'?")),
        (("--devices", "0"), ("Expected --devices to be", "got 0")),
        (("--strategy", "deepspeed_stage_2"), ("does that by ways of its own; type --strategy fsdp2",)),
        (("--strategy", "fsdp2", "--method", "vera"), ("needs whole matrices in each process", "type ddp")),
        (("--strategy", "fsdp2_tp", "--method", "vera"), ("which --strategy fsdp2_tp does not keep",)),
        (("--strategy", "tp", "--method", "lora"), ("which --strategy tp cuts in pieces; type --strategy fsdp2",)),
        (("--strategy", "fsdp2", "--optimizer", "Muon"), ("Optimiser Muon needs whole matrices", "--optimizer AdamW")),
        (("--strategy", "ddp", "--tensor_parallel", "2"), ("Expected --strategy tp or fsdp2_tp with --tensor_parallel 2",)),
        (("--strategy", "tp", "--devices", "3", "--method", "full"), ("2 key-value heads to be divisible by the 3",)),
        (
            ("--strategy", "fsdp2_tp", "--devices", "2", "--tensor_parallel", "3", "--method", "full"),
            ("Expected --tensor_parallel to be a divisor of 2", "got 3"),
        ),
        (("--retention", "gone.jsonl"), ("Expected --retention to be a file of rows, general or none; got 'gone.jsonl'",)),
        (("--retention", "."), ("Expected --retention to be a file of rows, general or none; got '.', which is no file",)),
        (("--packing", "on", "--method", "prefix_tuning"), ("cannot keep packed documents apart; type --packing off",)),
        (("--method", "lorra"), ("Expected --method to be one of ", "got 'lorra'. Did you mean 'lora'?", "plugins list")),
        (("--task", "instuct"), ("got 'instuct'. Did you mean 'instruct'?",)),
        (("--metrics", "exact_macth"), ("Did you mean 'exact_match'?",)),
        (("--optimizer", "Adamm"), ("Did you mean 'AdamW'?",)),
        (("--method", "lora", "--method.rnk", "3"), ("got 'rnk'. Did you mean 'rank'?",)),
        (("--method", "lora", "--method.rank", "0"), ("rank", "got 0")),
        (("--template", "alpacca"), ("'alpacca'. Did you mean 'alpaca'?",)),
        (("--template", "gone.jinja"), ("got 'gone.jinja'",)),
        (("--resume", "nowhere"), ("Expected --resume to be auto, a run folder or a checkpoint folder; 'nowhere' is none",)),
        (("--resume", ""), ("Expected --resume to be auto",)),
        (("--config", "gone.yaml"), ("Expected --config to name a preset or a YAML file; got 'gone.yaml'",)),
        (("--config", "quick_tset"), ("Did you mean 'quick_test'?",)),
        (("--trust_remote_code",), ("Expected --revision with --trust_remote_code",)),
        (("--trainer.max_epoch", "3"), ("got 'max_epoch'. Did you mean 'max_epochs'?",)),
    ],
)  # fmt: skip
def test_wrong_options(
    refused: Refused, cli: Cli, models: dict[Family, Path], data: Path, argv: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(cli("fit", models["llama"], "--data", data, *argv), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epochs: 3\nlerning_rate: 1\n", ("run.yaml:2: expected one of ", "got 'lerning_rate'. Did you mean 'learning_rate'?")),
        ("epochs: 1\nepochs: 2\n", ("run.yaml:2: expected each key once; 'epochs' also stands in line 1.",)),
        ("epochs: [1\n", ("run.yaml:2: expected YAML; ",)),
        ("- epochs\n", ("run.yaml:1: expected a mapping", "got a list")),
        ("epochs: .nan\n", ("Expected --epochs to be a finite number",)),
        (b"epochs: \xff\n", ("run.yaml: expected UTF-8 text; got byte 0xff at 8.",)),
        ("trainer:\n  callbacks:\n  - class_path: os.system\n", ("run.yaml; got 'os.system'", "plugin package")),
        ("trust_remote_code: true\n", ("run.yaml:1: expected trust_remote_code to be false in a config file",)),
        ("method: {name: lora, rank: big}\n", ("run.yaml:1: expected method.rank to be a whole number; got 'big'.",)),
    ],
)
def test_wrong_config_files(
    refused: Refused, cli: Cli, models: dict[Family, Path], data: Path, text: str | bytes, parts: tuple[str, ...]
) -> None:
    refused(cli("fit", models["llama"], "--data", data, "--config", write("run.yaml", text)), *parts)


def test_templates_that_jinja_refuses(refused: Refused, cli: Cli, models: dict[Family, Path], data: Path) -> None:
    fit = ("fit", models["llama"], "--data", data, "--template")
    refused(cli(*fit, write("a.jinja", "x\n{% for %}")), "a.jinja:2: expected a Jinja template, got: Expected an expression")
    refused(cli(*fit, write("b.jinja", b"x\xff")), "b.jinja: expected UTF-8, got a wrong byte at byte 1")
    refused(cli(*fit, write("c.jinja", "{{ raise_exception('only for cats') }}")), f"{data}:1: ", "'c'", "only for cats")
    model = changed(models["llama"], chat_template__jinja="{% endif %}")
    refused(cli("fit", model, "--data", data), "chat template of 'model':1: expected a Jinja template")


def test_the_last_of_two_equal_flags_counts(cli: Cli, models: dict[Family, Path], data: Path) -> None:
    result = cli("fit", models["llama"], "--data", data, "--epochs", "1", "--epochs", "2", "--print_config")
    assert result.code == 0
    assert "epochs: 2.0\n" in result.out


# ---- in a process of its own ------------------------------------------------------------------------------------------


def start(*argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lightning_ft", *map(str, argv)]
    return subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_errors_of_a_real_process_have_no_traceback(models: dict[Family, Path]) -> None:
    path = write("rows.jsonl", GOOD + "{\n")
    with start("fit", models["llama"], "--data", path) as process:
        out, err = process.communicate(timeout=500)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("lightning-ft: rows.jsonl:2: expected valid JSON")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)])
def test_a_signal_saves_and_says_how_to_go_on(
    models: dict[Family, Path], data: Path, cli: Cli, number: signal.Signals, code: int
) -> None:
    argv = ("--max_steps", "3000", "--epochs", "3000", "--precision", "fp32", "--batch_size", "4", "--verdict_rows", "0")
    process = start("fit", models["llama"], "--data", data, *argv, "--log_every", "1", "--output", "run", "--split", "1,0,0")
    assert process.stderr is not None
    said = []
    with process:
        for line in process.stderr:
            said.append(line)
            if line.startswith("step 3/"):
                process.send_signal(number)
                break
        said += process.stderr.readlines()
    assert process.returncode == code, "".join(said)
    assert f"Stopped by {number.name} after step " in said[-1]
    assert said[-1].rstrip().endswith("everything is saved. Go on with --resume run.")
    assert not any("Traceback" in line for line in said)
    step = int(said[-1].partition("after step ")[2].split()[0])
    assert (Path("run") / "checkpoints" / f"checkpoint-step-{step}").is_dir()
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "interrupted"
    assert not Path("run/.lock").exists()
    assert time.strptime(record["finished"][:19], "%Y-%m-%dT%H:%M:%S")
