"""The run folder: how it is named, locked, described, and found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_ft.config import TrainingConfig, option_names
from lightning_ft.errors import UsageError
from lightning_ft.run.folder import (
    NOT_OF_THE_RESULT,
    RunFolder,
    check_free,
    check_target,
    config_hash,
    create,
    new_folder,
    reopen,
    status,
    unfinished,
    versions,
)

HOLD = """
import sys
from pathlib import Path
from lightning_ft.run.folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
run.lock()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(**options: Any) -> TrainingConfig:
    return TrainingConfig(**{"model": "base", "data": ["data/My Orders (v2).jsonl"], **options})


def made(identity: str = "id", **options: Any) -> RunFolder:
    """A new run folder, let go again."""
    run = create(config(**options), "chat", identity)
    run.release()
    return run


# ---- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("data/My Orders (v2).jsonl", "chat_my-orders-v2_1"),
        ("rows.jsonl.gz", "chat_rows_1"),
        ("folder/", "chat_folder_1"),
        ("folder/*", "chat_folder_1"),
        ("d\u00e4ta.csv", "chat_d-ta_1"),
        ("../..", "chat_data_1"),
        ("\u6570\u636e.json", "chat_data_1"),
        ("x" * 300 + ".json", f"chat_{'x' * 40}_1"),
    ],
)
def test_the_name_says_task_and_data(data: str, name: str) -> None:
    assert made(data=[data]).path == Path("runs") / name


def test_numbers_count_up_and_gaps_are_not_waited_for() -> None:
    first, second = (made() for _ in range(2))
    assert (first.path.name, second.path.name) == ("chat_my-orders-v2_1", "chat_my-orders-v2_2")
    named = [made(name="best try").path for _ in range(2)]
    assert named == [Path("runs/best try"), Path("runs/best try_2")]


def test_output_is_always_the_folder_that_is_written(tmp_path: Path) -> None:
    run = made(output="deep/er/run", name="unused")
    assert run.path == Path("deep/er/run")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../x", "/abs", "a\\b", "a\nb"])
def test_a_name_is_one_folder_below_runs(name: str) -> None:
    with pytest.raises(UsageError, match="Expected --name to be the name of a folder under runs/; got "):
        config(name=name)


# ---- the lock ---------------------------------------------------------------------------------------------------------


def test_a_run_folder_belongs_to_one_live_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    made(output=str(folder))
    assert not (folder / ".lock").exists()
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "locked\n"
        expected = f"Run folder '{folder}' is in use by process {held.pid} on "
        for attempt in (
            lambda: check_free(folder), lambda: reopen(folder), lambda: check_target(config(output=str(folder))),
        ):  # fmt: skip
            with pytest.raises(UsageError) as caught:
                attempt()
            assert str(caught.value).startswith(expected)
            assert str(caught.value).endswith("; wait for it, or name another with --output.")
        held.kill()
    check_free(folder)  # the lock has died with its process, though the file is still there


def test_a_lock_clears_what_a_killed_process_left_but_only_in_a_run(tmp_path: Path) -> None:
    made(output="run")
    (tmp_path / "run" / ".tmp-half").mkdir()
    (tmp_path / "run" / "checkpoints" / ".tmp-checkpoint-step-3-99").mkdir(parents=True)
    reopen(tmp_path / "run").release()
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    (tmp_path / "mine" / ".tmp-precious").mkdir(parents=True)
    check_free(tmp_path / "mine")
    assert (tmp_path / "mine" / ".tmp-precious").is_dir()


# ---- targets that are refused -----------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_a_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for output in ("file", "file/below/it"):
        with pytest.raises(UsageError) as caught:
            check_target(config(output=output))
        assert str(caught.value).startswith(f"Expected '{output}' to be a folder that can be written, but '")
        assert str(caught.value).endswith("' is a file; name another one with --output.")
    (tmp_path / "runs").write_text("x")
    with pytest.raises(UsageError, match="Expected 'runs' to be a folder"):
        check_target(config())


def test_an_output_that_the_system_refuses_is_one_sentence() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs /proc, where nobody can make folders")
    with pytest.raises(UsageError, match=r"^Expected '/proc/nowhere/run' to be a folder that can be written, but "):
        create(config(output="/proc/nowhere/run"), "chat", "id")


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="may not be written by this user"):
        check_target(config(output="locked/run"))


def test_an_existing_run_is_never_overwritten() -> None:
    made(output="run")
    before = Path("run/run.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        create(config(output="run"), "chat", "other")
    assert str(caught.value) == "Run folder 'run' already holds a run; type --resume run to go on, or name another --output."
    assert Path("run/run.json").read_bytes() == before
    assert not Path("run/.lock").exists()


# ---- what it holds ----------------------------------------------------------------------------------------------------


def test_config_yaml_is_complete_and_reads_back() -> None:
    from lightning_ft.builtin import Full

    run = made(method=Full(), epochs=2.5, resume="auto", trainer={"max_time": "00:01:00:00"})
    values = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    assert set(values) == set(option_names()) - {"resume"}
    assert values["method"] == {"name": "full"}
    again = TrainingConfig.from_dict(values)
    assert (again.epochs, again.data, again.trainer) == (2.5, ["data/My Orders (v2).jsonl"], {"max_time": "00:01:00:00"})


def test_run_json_is_written_at_once_and_grows() -> None:
    run = made("the hash")
    first = json.loads((run.path / "run.json").read_text())
    assert (first["status"], first["config_hash"]) == ("running", "the hash")
    assert first["versions"] == versions()
    assert {"lightning-ft", "torch", "lightning", "transformers", "peft"} <= set(first["versions"])
    run.lock()
    run.update(status="finished", steps=3)
    run.release()
    assert json.loads((run.path / "run.json").read_text()) == {**first, "status": "finished", "steps": 3}
    assert status(run.path) == "finished"
    assert status(Path("nowhere")) == "unknown"
    assert not list(run.path.glob(".tmp-*"))


def test_only_who_holds_a_folder_writes_its_record() -> None:
    run = made()
    with pytest.raises(AssertionError, match="is not held by this process"):
        run.update(status="finished")
    assert status(run.path) == "running"


def test_a_damaged_record_is_one_sentence_and_lets_the_folder_go() -> None:
    made(output="run")
    Path("run/run.json").write_text('{"status": ')
    with pytest.raises(UsageError, match=r"^Expected 'run/run.json' to be a run's record: "):
        reopen(Path("run"))
    assert status(Path("run")) == "unknown"
    check_free(Path("run"))


# ---- finding it again -------------------------------------------------------------------------------------------------


def test_the_hash_covers_what_decides_the_result_and_nothing_else() -> None:
    base = config_hash(config())
    for name, value in {
        "seed": 1, "epochs": 1.0, "learning_rate": 1e-3, "method": {"name": "full"}, "data": ["other.jsonl"], "batch_size": 2,
        "precision": "fp32", "max_length": 64, "trainer": {"max_time": 1}, "split": [0.5, 0.25, 0.25],
    }.items():  # fmt: skip
        assert config_hash(config(**{name: value})) != base, name
    for name in NOT_OF_THE_RESULT:
        other = {
            "workers": 2,
            "log_every": 1,
            "keep_best": 3,
            "preflight": False,
            "verdict_rows": 1,
            "eval_batch_size": 2,
            "rank_timeout": 9.0,
        }.get(name, "other")
        assert config_hash(config(**{name: other})) == base, name


def test_unfinished_is_the_newest_run_of_the_same_config_that_has_not_finished() -> None:
    def run(name: str, hash_: str, state: str, age: float) -> Path:
        folder = made(hash_, name=name)
        folder.lock()
        folder.update(status=state)
        folder.release()
        then = time.time() - age
        os.utime(folder.path / "run.json", (then, then))
        return folder.path

    run("old", "a", "interrupted", 50)
    newest = run("new", "a", "failed", 10)
    run("done", "a", "finished", 5)
    run("other", "b", "interrupted", 1)
    (Path("runs") / "broken").mkdir()
    (Path("runs") / "broken" / "run.json").write_text("{")
    assert unfinished(Path("runs"), "a") == newest
    assert unfinished(Path("runs"), "c") is None
    assert unfinished(Path("nowhere"), "a") is None


def test_a_new_folder_is_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "eval_2").mkdir()
    made = [new_folder(tmp_path, "eval").name for _ in range(3)]
    assert made == ["eval_1", "eval_3", "eval_4"]
    assert all((tmp_path / name).is_dir() for name in made)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="to be a folder that can be written"):
        new_folder(tmp_path / "file", "eval")
