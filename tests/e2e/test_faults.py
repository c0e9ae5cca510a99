"""What goes wrong in long runs: kills, broken checkpoints, full disks, NaN, signals, two processes and one folder.

Runs are forked from a server that has imported everything (this file as a script), which may break something in them first.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.atomic import MANIFEST, broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIT = (
    *("--precision", "fp32", "--verdict_rows", "0", "--preflight", "false", "--learning_rate", "0.01", "--batch_size", "4"),
    *("--max_steps", "6", "--eval_every", "2", "--keep_best", "9", "--log_every", "1", "--output", "runs/a"),
)
"""Six steps with a validation and a checkpoint after every second one."""
RUN = Path("runs/a")


# ---- in the forked process: what is broken before the run begins ----------------------------------------------------


def at_call(owner: Any, name: str, at: int, act: Callable[[], object]) -> None:
    """Do something just before call number `at` (1-based) of a function."""
    original = getattr(owner, name)
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def places() -> dict[str, tuple[Any, str]]:
    """Where something may happen to a run."""
    from lightning_ft import atomic
    from lightning_ft.module import FineTuner
    from lightning_ft.run import checkpoint, preflight, session

    return {
        "step": (FineTuner, "training_step"),
        "validation": (FineTuner, "validation_step"),
        "preflight": (preflight.Preflight, "_run"),
        "save": (checkpoint.FolderCheckpoint, "save_checkpoint"),
        "state": (checkpoint, "save_state"),
        "manifest": (atomic, "_write_manifest"),
        "replace": (atomic, "_replace"),
        "remove": (checkpoint.FolderCheckpoint, "remove_checkpoint"),
        "finish": (session.Session, "finish"),
    }


def fill(disk: str) -> None:
    """Leave not a byte on a disk."""
    with Path(disk, "ballast").open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def break_run(place: str, at: int, what: str, argument: Any) -> None:
    """Arrange that `what` happens at a place."""
    acts: dict[str, Callable[[], object]] = {
        "signals": lambda: [os.kill(os.getpid(), number) for number in argument],
        "fill": lambda: fill(argument),
        "limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (argument, resource.RLIM_INFINITY)),
    }
    at_call(*places()[place], at, acts[what])


def serve() -> int:
    """Fork a run for each line of stdin; answer with its process id, then, when asked, with how it ended."""
    import lightning.pytorch
    import peft  # noqa: F401  # imported for the forks
    import transformers.models.llama.modeling_llama  # noqa: F401  # as above

    from lightning_ft.cli import main

    lightning.pytorch.Trainer  # noqa: B018  # resolves lazy imports
    places()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.chdir(request["cwd"])
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if request["fault"]:
                break_run(*request["fault"])
            return main(request["argv"])  # and out of the interpreter, as the command does
        print(pid, flush=True)
    return 0


# ---- in the test's process ------------------------------------------------------------------------------------------


class Runs:
    """Starts runs in the test's folder."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.number = logs, 0
        environment = {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )

    def _ask(self, request: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def start(self, *argv: object, fault: tuple[Any, ...] = ()) -> tuple[int, Path]:
        """`lightning-ft fit ARGV` in the current folder; `fault`: place, which call, what, its argument."""
        self.number += 1
        log = self.logs / f"{self.number}.txt"
        request = {"argv": ["fit", *map(str, argv)], "cwd": str(Path.cwd()), "log": str(log), "fault": fault}
        return self._ask(request), log

    def wait(self, started: tuple[int, Path]) -> tuple[int, str]:
        """Exit code (or minus the signal) and all that was said."""
        return self._ask({"wait": started[0]}), started[1].read_text()

    def __call__(self, *argv: object, fault: tuple[Any, ...] = ()) -> tuple[int, str]:
        return self.wait(self.start(*argv, fault=fault))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("logs"))
    yield made
    made.server.communicate()


@pytest.fixture(scope="module")
def argv(models: dict[str, Path], data: Path) -> tuple[object, ...]:
    return models["llama"], "--data", data, *FIT


@pytest.fixture(scope="module")
def killed(runs: Runs, argv: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed in its fifth step, after two checkpoints."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, log = runs(*argv, fault=("step", 5, "signals", [signal.SIGKILL]))
    assert code == -signal.SIGKILL, log
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copied(killed: Path, place: Path) -> Path:
    """That run, this test's own to break."""
    shutil.copytree(killed / "runs", place / "runs")
    return RUN


def steps(run: Path = RUN) -> list[int]:
    """The checkpoints of a run, each of them whole."""
    folders = list((run / "checkpoints").iterdir())
    assert [folder.name for folder in folders if broken(folder)] == []
    return sorted(int(folder.name.rpartition("-")[2]) for folder in folders)


def status(run: Path = RUN) -> str:
    found: str = json.loads((run / "run.json").read_text())["status"]
    return found


def sentence(log: str) -> str:
    """The last line, which is the only one of its kind."""
    assert "Traceback" not in log
    assert log.count("lightning-ft: ") == 1, log
    return log.strip().splitlines()[-1]


def goes_on(runs: Runs, *argv: object) -> str:
    """A resumed run comes to its end; what it said."""
    code, log = runs(*(argv or ("--resume", RUN)))
    assert code == 0, log
    assert status() == "finished"
    assert steps() == [2, 4, 6]
    assert not list(RUN.rglob(".tmp-*"))
    written = [json.loads(line)["step"] for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(written)) == [1, 2, 3, 4, 5, 6]
    assert written == sorted(written)
    return log


# ---- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["save", "state", "manifest", "replace"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before_it(
    runs: Runs, argv: tuple[object, ...], place: Path, at: str
) -> None:
    code, log = runs(*argv, fault=(at, 2, "signals", [signal.SIGKILL]))
    assert code == -signal.SIGKILL, log
    whole = [folder.name for folder in (RUN / "checkpoints").iterdir() if broken(folder) is None and folder.name[0] != "."]
    assert whole == ["checkpoint-step-2"]
    assert "from checkpoint-step-2" in goes_on(runs, *argv, "--resume", "auto")


@pytest.mark.long
@pytest.mark.parametrize("number", range(1, 4))
@pytest.mark.parametrize("at", ["step", "validation", "save", "state", "manifest", "replace", "remove", "finish"])
def test_a_kill_anywhere_can_be_resumed(runs: Runs, argv: tuple[object, ...], place: Path, at: str, number: int) -> None:
    few = (*argv, "--keep_best", "0")
    code, log = runs(*few, fault=(at, number, "signals", [signal.SIGKILL]))
    if code == 0:
        pytest.skip(f"'{at}' happens less than {number} times")
    code, log = runs(*few, "--resume", "auto")
    assert code == 0, log
    assert (status(), steps()) == ("finished", [6])
    assert not list(RUN.rglob(".tmp-*"))


# ---- broken checkpoints ---------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda c: flip(c / "adapter_model.safetensors"), "adapter_model.safetensors has another hash"),
    "truncated": (lambda c: os.truncate(c / "trainer_state.safetensors", 100), "trainer_state.safetensors has 100 bytes"),
    "deleted": (lambda c: (c / MANIFEST).unlink(), "manifest.json is missing"),
}


def newest(run: Path, step: int = 4) -> Path:
    return run / "checkpoints" / f"checkpoint-step-{step}"


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_checkpoint_is_passed_over_and_said(runs: Runs, copied: Path, how: str) -> None:
    act, why = BREAK[how]
    act(newest(copied))
    log = goes_on(runs, "--resume", copied)
    assert "resume: checkpoint-step-4 is broken" in log
    assert why in log
    assert "from checkpoint-step-2" in log


def test_where_all_are_broken_auto_begins_again_and_a_name_is_refused(
    runs: Runs, argv: tuple[object, ...], copied: Path
) -> None:
    for step in (2, 4):
        flip(newest(copied, step) / "trainer_state.safetensors")
    for named in (copied, newest(copied)):
        code, log = runs("--resume", named)
        assert code == 2, log
        assert f"Expected a whole checkpoint in '{named}'" in sentence(log)
    log = goes_on(runs, *argv, "--resume", "auto")
    assert log.count(" is broken (trainer_state.safetensors has another hash") == 2
    assert "from the beginning (no whole checkpoint)" in log


def test_a_named_checkpoint_falls_back_to_those_before_it_only(runs: Runs, copied: Path) -> None:
    flip(newest(copied, 2) / "adapter_model.safetensors")
    code, log = runs("--resume", newest(copied, 2))
    assert code == 2
    assert "checkpoint-step-2' or before it, found broken ones only" in sentence(log)
    code, log = runs("--resume", newest(copied))
    assert code == 0, log
    assert "from checkpoint-step-4" in log


def test_the_best_model_is_never_copied_from_a_broken_checkpoint(runs: Runs, copied: Path) -> None:
    code, log = runs("--resume", copied, fault=("finish", 1, "signals", [signal.SIGKILL]))
    assert code == -signal.SIGKILL, log
    scores = {
        line["step"]: line["val_loss"] for line in map(json.loads, (copied / "metrics.jsonl").open()) if "val_loss" in line
    }
    best = min(set(scores) - {6}, key=lambda step: scores[step])  # the sixth is what the run is resumed from
    flip(newest(copied, best) / "adapter_model.safetensors")
    code, log = runs("--resume", copied)
    assert code == 0, log
    assert json.loads((copied / "run.json").read_text())["best_step"] != best
    assert broken(copied / "best_model") is None


# ---- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """A disk of a megabyte and a half, mounted at runs/."""
    mounted = place / "runs"
    mounted.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "none", str(mounted)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.parametrize("at", [("save", 2), ("state", 2), ("step", 4)], ids=lambda at: f"{at[0]} {at[1]}")
def test_a_full_disk_keeps_what_was_saved(runs: Runs, argv: tuple[object, ...], disk: Path, at: tuple[str, int]) -> None:
    code, log = runs(*argv, fault=(*at, "fill", str(disk)))
    assert code == 1, log
    said = sentence(log)
    assert "Could not write 'runs/a" in said
    assert "No space left on device" in said
    assert "--resume" in said
    assert steps() == [2]
    assert not list(RUN.rglob(".tmp-*"))
    (disk / "ballast").unlink()
    assert "from checkpoint-step-2" in goes_on(runs)


def test_a_file_that_may_not_grow_keeps_what_was_saved(runs: Runs, argv: tuple[object, ...], place: Path) -> None:
    code, log = runs(*argv, fault=("state", 2, "limit", 20_000))
    assert code == 1, log
    assert "File too large" in sentence(log)
    assert steps() == [2]
    assert status() == "failed"
    goes_on(runs)


# ---- NaN ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model for which `~` is not a number, and 24 rows of which the 17th has one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("poisoned")
    model = AutoModelForCausalLM.from_pretrained(models["llama"])
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    (token,) = tokenizer("~", add_special_tokens=False).input_ids
    model.get_input_embeddings().weight.data[token] = float("nan")
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    rows = [{"instruction": f"Where is {'~' if n == 17 else n}?", "output": f"It is in {n % 7}."} for n in range(1, 25)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, folder / "rows.jsonl"


def test_nan_stops_before_the_step_and_names_the_row(runs: Runs, poisoned: tuple[Path, Path], place: Path) -> None:
    import torch
    from safetensors.torch import load_file

    model, rows = poisoned
    often = ("--split", "1,0,0", "--save_every", "1", "--seed", "1")
    code, log = runs(model, "--data", rows, *FIT, *often)
    assert code == 1, log
    said = sentence(log)
    assert "rows.jsonl:17)" in said
    assert "rows.jsonl:1," not in said
    bad = int(said.partition(" of step ")[2].split()[0])
    assert bad > 1, "the seed puts the row into the first step, before there is a checkpoint"
    assert steps() == [bad - 1]
    before = load_file(newest(RUN, bad - 1) / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in before.values())
    assert status() == "failed"
    code, log = runs("--resume", RUN)
    assert (code, sentence(log)) == (1, said)
    after = load_file(newest(RUN, bad - 1) / "adapter_model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "calls", "number", "saved"),
    [
        ("step", 3, signal.SIGINT, 3), ("step", 3, signal.SIGTERM, 3), ("step", 6, signal.SIGTERM, 6),
        ("validation", 2, signal.SIGTERM, 4), ("save", 2, signal.SIGINT, 4),
    ],
)  # fmt: skip
def test_a_signal_ends_the_step_and_saves(
    runs: Runs, argv: tuple[object, ...], place: Path, at: str, calls: int, number: signal.Signals, saved: int
) -> None:
    code, log = runs(*argv, fault=(at, calls, "signals", [number]))
    assert code == 128 + number, log
    said = sentence(log)
    assert f"Stopped by {number.name} after step" in said
    assert f"--resume {RUN}" in said
    assert status() == "interrupted"
    assert steps()[-1] in (saved, saved + 1)  # a signal in a save is seen after the next step
    last = steps()[-1]
    code, log = runs("--resume", RUN)
    assert code == 0, log
    assert f"from checkpoint-step-{last}" in log
    assert (status(), steps()[-1]) == ("finished", 6)


def test_a_second_signal_stops_at_once(runs: Runs, argv: tuple[object, ...], place: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        code, log = runs(*argv, "--output", f"runs/{number}", fault=("step", 3, "signals", [number, number]))
        assert code == 128 + number, log
        assert "Stopped at once" in sentence(log)
        assert "--resume" in log
        assert steps(Path(f"runs/{number}")) == [2]
        assert status(Path(f"runs/{number}")) == "interrupted"


@pytest.mark.parametrize(
    ("at", "number"), [("preflight", signal.SIGINT), ("preflight", signal.SIGTERM), ("finish", signal.SIGTERM)]
)
def test_a_signal_before_or_after_the_steps_has_its_code_too(
    runs: Runs, argv: tuple[object, ...], place: Path, at: str, number: signal.Signals
) -> None:
    code, log = runs(*argv, "--preflight", "true", fault=(at, 1, "signals", [number]))
    assert code == 128 + number, log
    assert f"Stopped at once by {number.name}" in sentence(log)
    assert status() == "interrupted"
    assert not list(RUN.rglob(".tmp-*"))
    goes_on(runs)


# ---- two processes --------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_until_its_process_is_gone(runs: Runs, argv: tuple[object, ...], place: Path) -> None:
    first = runs.start(*argv, fault=("step", 5, "signals", [signal.SIGSTOP]))
    while "step 4/6" not in first[1].read_text():
        assert Path(f"/proc/{first[0]}").exists(), first[1].read_text()
    for other in (argv, ("--resume", RUN), (*argv, "--resume", "auto")):
        code, log = runs(*other)
        assert code == 2, log
        assert f"in use by process {first[0]} on " in sentence(log)
    os.kill(first[0], signal.SIGKILL)
    assert runs.wait(first)[0] == -signal.SIGKILL
    assert status() == "running"
    goes_on(runs)


def test_runs_at_the_same_time_get_folders_of_their_own(runs: Runs, models: dict[str, Path], data: Path, place: Path) -> None:
    few = [word for word in FIT if word not in ("--output", "runs/a")]
    started = [runs.start(models["llama"], "--data", data, *few, "--max_steps", "2") for _ in range(3)]
    ended = [runs.wait(run) for run in started]
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert sorted(path.name for path in Path("runs").iterdir()) == [f"instruct_support_{n}" for n in (1, 2, 3)]
    assert {status(path) for path in Path("runs").iterdir()} == {"finished"}


def test_the_command_itself_stops_by_a_signal_from_outside(argv: tuple[object, ...], place: Path) -> None:
    command = [sys.executable, "-m", "lightning_ft", "fit", *map(str, argv), "--max_steps", "100000", "--epochs", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("step "))
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 143, said + rest
    assert "everything is saved" in rest
    assert status() == "interrupted"


if __name__ == "__main__":
    sys.exit(serve())
