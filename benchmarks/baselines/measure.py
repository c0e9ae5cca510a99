"""The clock that all contestants carry: when each optimiser step ended, whatever framework made it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.setting import Setting


class Clock:
    """Notes the time after every optimiser step of the process, and writes `measure.json`."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        # torch calls this after every step of every optimiser, inside a trainer or not.
        register_optimizer_step_post_hook(lambda *_: self.ends.append(time.perf_counter()))
        self.start = time.perf_counter()

    def write(self, folder: Path, setting: Setting, adapter: Path) -> None:
        """Numbers of the run that just ended.

        `examples_per_s` is of the steady part, from the end of the first optimiser step to the end of the last;
        `tokens_per_s` is that times the mean tokens of a row, without padding; `training_s` is from the start of
        `main` to the last step: imports, loading of the model and preparation of the rows included.
        """
        options = setting.options
        rows, size = options["train_rows"], options["batch_size"]
        if len(self.ends) != rows // size or rows % size:
            raise RuntimeError(f"Expected {rows / size} steps of {size} rows (one epoch), counted {len(self.ends)} steps.")
        examples = (len(self.ends) - 1) * size / (self.ends[-1] - self.ends[0])
        values: dict[str, Any] = {
            "examples_per_s": examples,
            "tokens_per_s": examples * options["train_tokens"] / rows,
            "training_s": self.ends[-1] - self.start,
            "adapter": str(adapter),
            "steps": len(self.ends),
        }
        (folder / "measure.json").write_text(json.dumps(values) + "\n", encoding="utf-8")


def arguments() -> tuple[Setting, Path]:
    """The setting and the folder to write, from the command line of a contestant."""
    return Setting.load(sys.argv[1]), Path(sys.argv[2])
