"""`evaluate --harness`: a model on the tasks of a benchmark that brings its own prompts and metrics, run by a plugin."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import strict, write_json, write_text
from lightning_ft.errors import UsageError
from lightning_ft.loading import Loaded, load, locate
from lightning_ft.registry import registry
from lightning_ft.run.folder import versions
from lightning_ft.run.stages import DTYPES, check_output, free_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lightning_ft.types import Benchmarked

HARNESS = "harness.json"
"""The file of numbers; `samples_<task>.jsonl` beside it have what they were computed of."""


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    max_length: int | None = None,
    apply_chat_template: bool = False,
    precision: str = "auto",
    output: str | None = None,
) -> tuple[Benchmarked, Path]:
    """What the first plugin that can run them makes of the tasks, and the folder that was written.

    Raises:
        UsageError: no plugin runs tasks, or options, model or tasks are wrong.
    """
    _check(tasks, num_fewshot, limit, max_length, precision)
    check_output(output, HARNESS)
    locate(model)
    known: dict[str, Any] = {}

    def loading() -> Loaded:
        loaded = load(model, dtype=DTYPES[precision])
        known["dtype"] = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
        return loaded

    found: Benchmarked | None = registry().manager.hook.run_harness(
        loading=loading, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, max_length=max_length,
        apply_chat_template=apply_chat_template,
    )  # fmt: skip
    if found is None:
        raise UsageError(
            f"Expected a plugin that runs {', '.join(tasks)} for --harness, got none; install one (`lightning-ft plugins list` "
            "shows what is there), or name --data instead."
        )
    options = {"num_fewshot": num_fewshot, "limit": limit, "max_length": max_length, "apply_chat_template": apply_chat_template}
    folder = free_folder(model, output)
    _write(folder, found, {"model": model, "tasks": list(tasks), **options, **known, "versions": versions()})
    return found, folder


def _is_whole(number: float) -> bool:
    return math.isfinite(number) and number == int(number) > 0


def _check(tasks: Sequence[str], num_fewshot: int | None, limit: float | None, max_length: int | None, precision: str) -> None:
    """Raise UsageError unless the options are what they have to be."""
    checks = {
        "harness": (bool(tasks) and all(tasks), "at least one task", list(tasks)),
        "num_fewshot": (num_fewshot is None or num_fewshot >= 0, "at least 0", num_fewshot),
        "limit": (limit is None or 0 < limit < 1 or _is_whole(limit), "a whole number, or a share below 1", limit),
        "max_length": (max_length is None or max_length >= 2, "at least 2", max_length),
        "precision": (precision in DTYPES, f"one of {', '.join(DTYPES)}", precision),
    }
    for name, (good, wanted, got) in checks.items():
        if not good:
            raise UsageError(f"Expected --{name} to be {wanted}; got {got}.")


def _write(folder: Path, found: Benchmarked, details: dict[str, Any]) -> None:
    """The samples of each task, one document a line, and at last the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, samples in found.samples.items():
        lines = [json.dumps(sample, ensure_ascii=False, default=str) for sample in samples]
        write_text(folder / f"samples_{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.jsonl", "".join(f"{line}\n" for line in lines))
    measurements = [dataclasses.asdict(one) for one in found.measurements]
    results = {"version": 1, "measurements": measurements, "details": details | dict(found.details)}
    write_json(folder / HARNESS, strict(results))
