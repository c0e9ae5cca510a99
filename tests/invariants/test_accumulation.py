"""Eight rows a step are eight rows a step: at once, one by one, or spread over two processes, the weights are the same.

Row lengths are very uneven, the last step of an epoch has a single row (so that a rank has none), and micro-batches on the two
ranks differ in number. Lightning's own accumulation, which averages the means of micro-batches, is off by some 1e-3 here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_ft

COMMON: dict[str, Any] = {
    "method": "full", "epochs": 2, "precision": "fp32", "learning_rate": 3e-4, "weight_decay": 0.1, "verdict_rows": 0,
    "log_every": 3, "eval_every": 5, "preflight": False,
}  # fmt: skip


def assert_equal_runs(of_run: Any, one: Path, other: Path) -> None:
    mine, theirs = of_run.weights(one), of_run.weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-6)
    lines = of_run.lines(one), of_run.lines(other)
    assert len(lines[0]) == len(lines[1]) == 4 + 3
    for mine, theirs in zip(*lines, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"padding_share"}:  # micro-batches are other ones
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-7), key


@pytest.fixture(scope="module")
def at_once(of_run: Any, plain_backbone: Path, uneven: Path, environment: Any, tmp_path_factory: Any) -> dict[str, Path]:
    """The runs of 8 rows in one micro-batch, by packing."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_FT_CACHE", environment["LIGHTNING_FT_CACHE"])
        for packing in ("off", "on"):
            runs[packing] = tmp_path_factory.mktemp("at_once") / packing
            lightning_ft.fit(
                model=str(plain_backbone), data=str(uneven), output=str(runs[packing]), batch_size=8, packing=packing, **COMMON
            )
    return runs


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("sizes", [(1, 8), (2, 4), (8, 1)], ids=str)
def test_one_by_one_is_at_once(
    of_run: Any, at_once: dict[str, Path], plain_backbone: Path, uneven: Path, environment: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, packing: str, sizes: tuple[int, int],
) -> None:  # fmt: skip
    monkeypatch.setenv("LIGHTNING_FT_CACHE", environment["LIGHTNING_FT_CACHE"])
    options = COMMON | {"batch_size": sizes[0], "accumulate": sizes[1], "packing": packing, "output": str(tmp_path / "run")}
    if sizes == (8, 1):  # in micro-batches of unequal numbers of rows
        options["batch_tokens"] = 300
    lightning_ft.fit(model=str(plain_backbone), data=str(uneven), **options)
    assert_equal_runs(of_run, at_once[packing], tmp_path / "run")


def typed(words: list[str], folder: Path, environment: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, cwd=folder, timeout=500)


@pytest.mark.parametrize("sizes", [(4, 1), (1, 4)], ids=str)
def test_two_ranks_are_one(
    of_run: Any, at_once: dict[str, Path], plain_backbone: Path, uneven: Path, environment: Any, tmp_path: Path,
    sizes: tuple[int, int],
) -> None:  # fmt: skip
    words: list[object] = ["--model", plain_backbone, "--data", uneven, "--output", tmp_path / "run", "--packing", "off"]
    for name, value in (COMMON | {"batch_size": sizes[0], "accumulate": sizes[1]}).items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else value]
    fit = [sys.executable, "-m", "lightning_ft", "fit", "--devices", "2", "--strategy", "ddp"]
    done = typed([*fit, *map(str, words)], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(of_run, at_once["off"], tmp_path / "run")
    assert "Warning" not in done.stderr
    assert "recommended" not in done.stderr
    assert done.stdout.count("Run folder:") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lightning_ft"]


def test_two_ranks_of_torchrun_are_one(
    of_run: Any, at_once: dict[str, Path], plain_backbone: Path, uneven: Path, environment: Any, tmp_path: Path
) -> None:
    """Without --output only the first rank knows the folder; nobody else writes into it or beside it."""
    assert "LIGHTNING_FT_RUN" not in os.environ, "the runs of this process would be taken for it"
    words: list[object] = ["--model", plain_backbone, "--data", uneven, "--packing", "off"]
    for name, value in (COMMON | {"batch_size": 4}).items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else value]
    done = typed([*TORCHRUN, "fit", *map(str, words)], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert_equal_runs(of_run, at_once["off"], run)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["world_size"], record["method"]) == ("finished", 2, "full")
    assert {"started", "versions", "config_hash", "finished"} <= record.keys(), "the first rank's record is whole"


def test_a_stream_under_torchrun_needs_a_folder(plain_backbone: Path, uneven: Path, environment: Any, tmp_path: Path) -> None:
    words = ["fit", "--model", str(plain_backbone), "--data", str(uneven), "--stream", "20", "--max_steps", "4"]
    done = typed([*TORCHRUN, *words], tmp_path, environment)
    assert done.returncode
    assert "Expected --output with --stream where processes are started from outside; got none." in done.stderr
    assert not (tmp_path / "runs").exists()
