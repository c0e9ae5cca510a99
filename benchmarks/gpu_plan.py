"""What `plan` says that runs will take of a GPU, and what the same runs then take: many runs, one after another in one process.

`python -m benchmarks.gpu_plan SETTING OUT predict|run`

The start of a process costs more than a run of a few steps, so that all runs of a suite share one. A metric is named for
method, quantisation and tokens of a batch: `lora_nf4_8192_mb`.
"""

from __future__ import annotations

import gc
import json
import resource
import shutil
import sys
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.plan import arguments
from benchmarks.setting import Setting

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 2**20


def predict(setting: Setting, out: Path) -> dict[str, float]:
    """The forecasts, by the command as users type it, once for each batch shape."""
    from lightning_ft.cli import main as command

    found: dict[str, float] = {}
    for tokens in setting.options["batch_tokens"]:
        plan, begin = out / f"plan_{tokens}.json", time.perf_counter()
        if command(["plan", *arguments(setting, "lora", tokens, out / "run"), "--json", str(plan)]):
            raise SystemExit(1)
        found[f"plan_{tokens}_s"] = time.perf_counter() - begin
        rows = {row["name"]: row for row in json.loads(plan.read_text(encoding="utf-8"))["methods"]}
        for method, kind in runs(setting):
            row = rows[f"{method} + {kind}" if kind else method]
            print(f"{name(method, kind, tokens)}: {row['reason'] or row['parts']}", flush=True)
            if row["memory"] is not None:
                found[f"{name(method, kind, tokens)}_mb"] = row["memory"] / MB
    return found


def run(setting: Setting, out: Path) -> dict[str, float]:
    """Train with each method and batch shape; a run that fails is counted as `failed`, and its numbers are missing."""
    found: dict[str, float] = {"failed": 0}
    for tokens, (method, kind) in product(setting.options["batch_tokens"], runs(setting)):
        called, folder = name(method, kind, tokens), out / "run"
        words = arguments(setting, method, tokens, folder) + (["--quantize", kind] if kind else [])
        measured = measure(lambda words=words: fit(words))  # type: ignore[misc]  # mypy does not know the type of a default
        print(f"{called}: {measured or 'FAILED'}", flush=True)
        found["failed"] += not measured
        found |= {f"{called}_{metric}": value for metric, value in measured.items()}
        shutil.rmtree(folder, ignore_errors=True)
    return found


def fit(words: list[str]) -> bool:
    """Whether a run ends well."""
    from lightning_ft.cli import main as command

    return command(["fit", *words, "--debug"]) == 0


def measure(work: Callable[[], bool]) -> dict[str, float]:
    """What the work took of the GPU at its peak; without one, the greatest memory of the process so far.

    Args:
        work: Returns whether it went well.

    Returns:
        In MB of 2**20 bytes: `mb`, what was taken of the card; for diagnosis `allocated_mb`, the tensors in it, `context_mb`,
        what CUDA and its libraries took beside torch's memory, and `before_mb`, what was left by earlier work. Nothing where
        the work failed.
    """
    if not torch.cuda.is_available():
        return {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB} if work() else {}
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    if not work():
        return {}
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    sizes = {"mb": reserved + context, "allocated_mb": allocated, "context_mb": context, "before_mb": before}
    return {metric: size / MB for metric, size in sizes.items()}


def runs(setting: Setting) -> list[tuple[str, str]]:
    """Methods, each with the quantisation of its base, empty for none."""
    return [*((method, "") for method in setting.options["methods"]), *(("lora", kind) for kind in setting.options["quantize"])]


def name(method: str, kind: str, tokens: int) -> str:
    """What the metrics of a run begin with."""
    return "_".join(filter(None, (method, kind, str(tokens))))


def main() -> None:
    """Do what the command line says and write `measure.json`."""
    setting, out, way = Setting.load(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    found = predict(setting, out) if way == "predict" else run(setting, out)
    (out / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
