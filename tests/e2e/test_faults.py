"""Faults of long runs: kills in a save, broken checkpoints, full disks, losses that are not numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.atomic import MANIFEST, broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def killed(runs: Any, argv: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed in its fifth step, after two checkpoints."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, log = runs(*argv, fault=("step", 5, "signals", [signal.SIGKILL]))
    assert code == -signal.SIGKILL, log
    return folder


@pytest.fixture
def copied(killed: Path, runs: Any, clean: None) -> Path:
    """That run, this test's own to break."""
    shutil.copytree(killed / "runs", "runs")
    run: Path = runs.RUN
    return run


# ---- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", ["false", "true"])
@pytest.mark.parametrize("at", ["save", "state", "manifest", "replace"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before_it(
    runs: Any, argv: tuple[object, ...], killed: Path, clean: None, at: str, behind: str
) -> None:
    """After a run of the same rows (`killed`), whose encoding, found in the cache, is no second save of this one's."""
    argv = (*argv, "--save_behind", behind)
    code, log = runs(*argv, fault=(at, 2, "signals", [signal.SIGKILL]))
    assert code == -signal.SIGKILL, log
    whole = [folder.name for folder in (runs.RUN / "checkpoints").iterdir() if broken(folder) is None and folder.name[0] != "."]
    assert whole == ["checkpoint-step-2"]
    assert "from checkpoint-step-2" in runs.goes_on(*argv, "--resume", "auto")


@pytest.mark.long
@pytest.mark.parametrize("number", range(1, 4))
@pytest.mark.parametrize("at", ["step", "validation", "save", "state", "manifest", "replace", "remove", "finish"])
def test_a_kill_anywhere_can_be_resumed(runs: Any, argv: tuple[object, ...], clean: None, at: str, number: int) -> None:
    few = (*argv, "--keep_best", "0")
    code, log = runs(*few, fault=(at, number, "signals", [signal.SIGKILL]))
    if code == 0:
        pytest.skip(f"'{at}' happens less than {number} times")
    code, log = runs(*few, "--resume", "auto")
    assert code == 0, log
    assert (runs.status(), runs.steps()) == ("finished", [6])
    assert not list(runs.RUN.rglob(".tmp-*"))


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
def test_a_broken_checkpoint_is_passed_over_and_said(runs: Any, copied: Path, how: str) -> None:
    act, why = BREAK[how]
    act(newest(copied))
    log = runs.goes_on("--resume", copied)
    assert "resume: checkpoint-step-4 is broken" in log
    assert why in log
    assert "from checkpoint-step-2" in log


def test_where_all_are_broken_auto_begins_again_and_a_name_is_refused(
    runs: Any, argv: tuple[object, ...], copied: Path
) -> None:
    for step in (2, 4):
        flip(newest(copied, step) / "trainer_state.safetensors")
    for named in (copied, newest(copied)):
        code, log = runs("--resume", named)
        assert code == 2, log
        assert f"Expected a whole checkpoint in '{named}'" in runs.sentence(log)
    log = runs.goes_on(*argv, "--resume", "auto")
    assert log.count(" is broken (trainer_state.safetensors has another hash") == 2
    assert "from the beginning (no whole checkpoint)" in log


def test_a_named_checkpoint_falls_back_to_those_before_it_only(runs: Any, copied: Path) -> None:
    flip(newest(copied, 2) / "adapter_model.safetensors")
    code, log = runs("--resume", newest(copied, 2))
    assert code == 2
    assert "checkpoint-step-2' or before it, found broken ones only" in runs.sentence(log)
    code, log = runs("--resume", newest(copied))
    assert code == 0, log
    assert "from checkpoint-step-4" in log


def test_the_best_model_is_never_copied_from_a_broken_checkpoint(runs: Any, copied: Path) -> None:
    code, log = runs("--resume", copied, fault=("finish", 1, "signals", [signal.SIGKILL]))
    assert code == -signal.SIGKILL, log
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    best = min(set(scores) - {6}, key=lambda step: scores[step])  # the sixth is what the run is resumed from
    flip(newest(copied, best) / "adapter_model.safetensors")
    code, log = runs("--resume", copied)
    assert code == 0, log
    assert json.loads((copied / "run.json").read_text())["best_step"] != best
    assert broken(copied / "best_model") is None


# ---- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(clean: None) -> Iterator[Path]:
    """A disk of a megabyte and a half, mounted at runs/."""
    mounted = Path("runs").absolute()
    mounted.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "none", str(mounted)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.parametrize("at", [("save", 2), ("state", 2), ("step", 4)], ids=lambda at: f"{at[0]} {at[1]}")
def test_a_full_disk_keeps_what_was_saved(runs: Any, argv: tuple[object, ...], disk: Path, at: tuple[str, int]) -> None:
    code, log = runs(*argv, fault=(*at, "fill", str(disk)))
    assert code == 1, log
    said = runs.sentence(log)
    assert "Could not write 'runs/a" in said
    assert "No space left on device" in said
    assert "--resume" in said
    assert runs.steps() == [2]
    assert not list(runs.RUN.rglob(".tmp-*"))
    (disk / "ballast").unlink()
    assert "from checkpoint-step-2" in runs.goes_on()


def test_a_file_that_may_not_grow_keeps_what_was_saved(runs: Any, argv: tuple[object, ...], clean: None) -> None:
    code, log = runs(*argv, fault=("state", 2, "limit", 20_000))
    assert code == 1, log
    assert "File too large" in runs.sentence(log)
    assert runs.steps() == [2]
    assert runs.status() == "failed"
    runs.goes_on()


# ---- NaN ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model for which `~` is not a number, and 24 rows of which the 17th has one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("poisoned")
    model = AutoModelForCausalLM.from_pretrained(models["llama"])
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    (token,) = tokenizer("~", add_special_tokens=False).input_ids
    model.get_input_embeddings().weight.data[token] = float("nan")  # type: ignore[operator]  # transformers types it so
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    rows = [{"instruction": f"Where is {'~' if n == 17 else n}?", "output": f"It is in {n % 7}."} for n in range(1, 25)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, folder / "rows.jsonl"


def test_nan_stops_before_the_step_and_names_the_row(runs: Any, poisoned: tuple[Path, Path], clean: None) -> None:
    import torch
    from safetensors.torch import load_file

    model, rows = poisoned
    often = ("--split", "1,0,0", "--save_every", "1", "--seed", "1")
    code, log = runs(model, "--data", rows, *runs.FIT, *often)
    assert code == 1, log
    said = runs.sentence(log)
    assert "rows.jsonl:17)" in said
    assert "rows.jsonl:1," not in said
    bad = int(said.partition(" of step ")[2].split()[0])
    assert bad > 1, "the seed puts the row into the first step, before there is a checkpoint"
    assert runs.steps() == [bad - 1]
    before = load_file(newest(runs.RUN, bad - 1) / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in before.values())
    assert runs.status() == "failed"
    code, log = runs("--resume", runs.RUN)
    assert (code, runs.sentence(log)) == (1, said)
    after = load_file(newest(runs.RUN, bad - 1) / "adapter_model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
