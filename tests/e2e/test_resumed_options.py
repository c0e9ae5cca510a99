"""Options beside `--resume RUN`: what would make it another run is refused by name, the rest is taken and written down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import lightning_ft
from lightning_ft.checkpoint import checkpoints
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from lightning_ft.testing.models import Family
    from tests.e2e.conftest import Cli, Fitted, Refused

RUN = Path("run")


@pytest.fixture(autouse=True)
def stopped(clean: None, fitted: Fitted) -> dict[str, Any]:
    """A run in `run` that was interrupted before its last step; the options that it began with."""
    shutil.copytree(fitted.folder, RUN)
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    for name in ("final_model", "best_model"):
        shutil.rmtree(RUN / name)
    assert checkpoints(RUN)
    return options()


def options() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((RUN / "config.yaml").read_text())
    return found


def resumed_record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RUN / "run.json").read_text())
    return found


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ("--learning_rate", "0.1"),
            "got --learning_rate 0.1 (the run: 0.01); leave out what differs to go on, or start",
        ),
        (("--learning_rate", "0.1", "--seed", "4"), "got --learning_rate 0.1 (the run: 0.01) and --seed 4 (the run: 3); "),
        (("--method.rank", "32"), "got --method.rank 32 (the run: 16); "),
        (("--method", "full"), "got --method full (the run: lora); "),
        (("--task", "chat"), "got --task chat (the run: instruct); "),
        (("--task", "instruct", "--task.answer_column", "reply"), "got --task.answer_column reply (the run: "),
        (("--optimizer", "SGD"), "got --optimizer SGD (the run: AdamW); "),
        (("--max_steps", "5"), "got --max_steps 5 (the run: 6); "),
        (("--optimizer.betas", "[0.5,0.9]"), "got --optimizer.betas 0.5,0.9 (the run: 0.9,0.999); "),
        (("--trainer.limit_val_batches", "0.5"), "got --trainer.limit_val_batches 0.5 (the run: none); "),
        (("--config", "quick_test"), "got --"),
        (("--output", "elsewhere"), "got --output elsewhere (the run: none); "),
        (("--name", "other"), "got --name other (the run: none); "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_would_make_it_another_run_is_refused(
    cli: Cli, refused: Refused, stopped: dict[str, Any], argv: tuple[str, ...], said: str
) -> None:
    before = (RUN / "run.json").read_bytes()
    refused(cli("fit", "--resume", RUN, *argv), "Expected the options that run 'run' began with, ", said, at_once=False)
    assert options() == stopped
    assert (RUN / "run.json").read_bytes() == before


def test_a_model_that_is_there_is_not_taken_for_another(cli: Cli, refused: Refused, models: dict[Family, Path]) -> None:
    gpt2 = models["gpt2"]
    refused(cli("fit", "--resume", RUN, "--model", gpt2), f"got --model {gpt2} (the run: ", at_once=False)


@pytest.mark.parametrize("was", ["gone", "embedded", "acme/base"])
def test_another_model_is_not_taken_for_one_that_was_moved(
    cli: Cli, refused: Refused, models: dict[Family, Path], stopped: dict[str, Any], was: str
) -> None:
    (RUN / "config.yaml").write_text(yaml.safe_dump(stopped | {"model": was}))
    gpt2 = models["gpt2"]
    refused(cli("fit", "--resume", RUN, "--model", gpt2), f"got --model {gpt2} (the run: {was})", at_once=False)


def test_another_model_under_the_same_path_is_told(cli: Cli, refused: Refused, stopped: dict[str, Any], fitted: Fitted) -> None:
    """As where the run before this one was trained again."""
    shutil.copytree(fitted.model, "model")
    (RUN / "config.yaml").write_text(yaml.safe_dump(stopped | {"model": "model"}))
    weights = bytearray(Path("model/model.safetensors").read_bytes())
    weights[-1] ^= 1
    Path("model/model.safetensors").write_bytes(weights)
    refused(cli("fit", "--resume", RUN), "Expected the same model as run 'run' had (", "; restore it, or start", at_once=False)
    Path("model/model.safetensors").write_bytes((fitted.model / "model.safetensors").read_bytes())
    assert cli("fit", "--resume", RUN).code == 0


def test_rows_that_shared_micro_batches_do_so_to_the_end(cli: Cli, refused: Refused) -> None:
    """As where a check at the start finds on another machine that they cannot: the order of rows would be another one."""
    record = resumed_record()
    assert record["packed"]
    (RUN / "run.json").write_text(json.dumps(record | {"packed": False}))
    refused(cli("fit", "--resume", RUN), "Expected the same packing as run", "; type --packing off, or start", at_once=False)
    refused(cli("fit", "--resume", RUN, "--packing", "on"), "got --packing on (the run: auto)", at_once=False)
    assert cli("fit", "--resume", RUN, "--packing", "off").code == 0


def test_time_that_is_up_leaves_a_run_to_go_on_with(cli: Cli, refused: Refused, fitted: Fitted) -> None:
    words: list[object] = ["fit", fitted.model, "--data", fitted.data, "--output", "long", "--epochs", 5000]
    words += ["--max_steps", 5000, "--batch_size", 4, "--precision", "fp32", "--verdict_rows", 0, "--preflight", "false"]
    words += ["--eval_every", 4000, "--save_every", 4000]
    refused(cli(*words, "--trainer.max_time", "3s"), "Expected --trainer.max_time as DD:HH:MM:SS", at_once=False)
    shutil.rmtree("long")
    steps = []
    for more in (words, ["fit", "--resume", "long"]):
        ended = cli(*more, "--trainer.max_time", "00:00:00:02")
        assert ended.code == 0, ended.err
        record = json.loads(Path("long/run.json").read_text())
        assert f"stopped after step {record['steps']} of 5000: the time is up; go on with --resume long" in ended.err
        assert record["status"] == "interrupted"
        assert [path.name for path in checkpoints(Path("long"))][-1:] == [f"checkpoint-step-{record['steps']}"]
        steps.append(record["steps"])
    assert 0 < steps[0] < steps[1]
    assert (Path("long") / "final_model").is_dir()


def test_a_folder_that_is_called_like_a_method_is_none(cli: Cli, refused: Refused) -> None:
    Path("full").mkdir()
    refused(cli("fit", "--resume", RUN, "--method", "full"), "got --method full (the run: lora)", at_once=False)


def test_the_size_of_micro_batches_is_not_taken_where_it_decides_the_rows_of_a_step(
    cli: Cli, refused: Refused, stopped: dict[str, Any]
) -> None:
    (RUN / "config.yaml").write_text(yaml.safe_dump(stopped | {"batch_size": None, "batch_tokens": 128}))
    refused(cli("fit", "--resume", RUN, "--batch_tokens", "64"), "got --batch_tokens 64 (the run: 128); ", at_once=False)


def test_a_model_by_another_path_is_the_same_one(fitted: Fitted, stopped: dict[str, Any]) -> None:
    Path("here").symlink_to(fitted.model)
    lightning_ft.fit(resume=str(RUN), model="here", verdict_rows=0)
    assert options() == stopped | {"model": "here", "verdict_rows": 0}


def test_what_computes_the_same_is_taken_and_written_down(cli: Cli, stopped: dict[str, Any], fitted: Fitted) -> None:
    moved = Path("moved.jsonl")
    shutil.copy(fitted.data, moved)
    shutil.copytree(fitted.model, "moved")
    began = stopped | {"model": "gone"}
    (RUN / "config.yaml").write_text(yaml.safe_dump(began))
    given: dict[str, Any] = {
        "model": "moved", "data": ["moved.jsonl"], "log_every": 2, "gradient_checkpointing": True, "save_every": 3,
        "verdict_rows": 1, "max_new_tokens": 3, "batch_tokens": 512,
    }  # fmt: skip
    flags = [word for name, value in given.items() for word in (f"--{name}", value[0] if name == "data" else str(value))]
    result = cli("fit", "--resume", RUN, "--output", RUN, *flags)
    assert result.code == 0, result.err
    assert "resume: --gradient_checkpointing true from here on (before: false)" in result.err
    assert options() == {**began, **given}
    first, *more = resumed_record()["changed_options"]
    assert first == {"from": resumed_record()["resumed_from"], **given}
    assert not more
    assert resumed_record()["status"] == "finished"


def test_nothing_is_written_down_where_nothing_differs(cli: Cli, stopped: dict[str, Any]) -> None:
    result = cli("fit", "--resume", RUN, "--method", "lora", "--method.rank", "16", "--seed", "3", "--verdict_rows", "3")
    assert result.code == 0, result.err
    assert "from here on" not in result.err
    assert options() == stopped
    assert "changed_options" not in resumed_record()


def test_python_takes_what_is_not_given_from_the_run(stopped: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"got --warmup 0\.5 \(the run: 0\.03\)"):
        lightning_ft.fit(resume=str(RUN), warmup=0.5)
    run = lightning_ft.fit(resume=str(RUN), verdict_rows=0)
    assert run.verdict is None
    assert options() == stopped | {"verdict_rows": 0}


def test_python_asks_again_for_objects(stopped: dict[str, Any]) -> None:
    text = "<lightning.pytorch.callbacks.timer.Timer from Python>"
    (RUN / "config.yaml").write_text(yaml.safe_dump(stopped | {"trainer": {"callbacks": [text]}}))
    with pytest.raises(UsageError, match=r"Expected trainer= as run 'run' began with, whose Trainer arguments are objects"):
        lightning_ft.fit(resume=str(RUN))
    lightning_ft.fit(resume=str(RUN), trainer={}, verdict_rows=0)
    assert options()["trainer"] == {}


def test_a_run_without_its_options_cannot_go_on() -> None:
    (RUN / "config.yaml").write_text("- 3\n")
    with pytest.raises(UsageError, match=r"Expected 'run/config\.yaml' to hold the options of the run; got list"):
        lightning_ft.fit(resume=str(RUN))
    (RUN / "config.yaml").unlink()
    with pytest.raises(UsageError, match=r"Expected 'run/config\.yaml' to hold the options of the run; .*No such file"):
        lightning_ft.fit(resume=str(RUN))
