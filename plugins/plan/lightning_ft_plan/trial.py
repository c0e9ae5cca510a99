"""`--execute`: the product's own preflight of a method, in a process of its own, whose peak memory is what is measured.

`python -m lightning_ft_plan.trial CONFIG RESULT` is that process: it ends when the preflight has spoken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.errors import RunInterruptedError
from lightning_ft_plan.forecast import RUNTIME
from lightning_ft_plan.hollow import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.config import TrainingConfig
    from lightning_ft_plan.forecast import Row

ENOUGH = 15
"""The signal as which the end of a trial is told; no process gets it."""


def measured(row: Row, config: TrainingConfig) -> Row:
    """The row with the preflight's memory and time in place of the forecast's; a note where it did not come so far.

    Nothing is left behind: the run folder is a temporary one.
    """
    values = config.as_dict()
    if row.note:
        return row
    plain = {"quantize": None, "double_quant": False, "compute_dtype": None}  # of a plain base, whatever was asked for
    values |= plain if row.stored is None else asdict(row.stored)
    with tempfile.TemporaryDirectory(prefix="lightning-ft-plan-") as folder:
        values |= {
            "method": {"name": row.method, **row.options}, "output": str(Path(folder) / "run"), "name": None, "resume": None,
            "preflight": True, "verdict_rows": 0, "retention": "none",
        }  # fmt: skip
        found, said = _process(values, Path(folder))
    if found is None:
        return replace(row, note=f"could not be measured: {said}")
    weight, total = row.total, int(found["peak_memory"])
    parts = {part: round(row.parts[part] * total / weight) for part in PARTS}
    parts[RUNTIME] = total - sum(parts.values())
    return replace(
        row, parts=parts, measured=True, predicted=weight, step_seconds=found["step_seconds"],
        total_seconds=found["total_seconds"],
    )  # fmt: skip


def _process(values: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any] | None, str]:
    """What the preflight found, or why there is nothing."""
    config, result = folder / "config.json", folder / "result.json"
    config.write_text(json.dumps(values, default=str), encoding="utf-8")
    command = [sys.executable, "-m", "lightning_ft_plan.trial", str(config), str(result)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found, ""
    if done.returncode == -9:
        return None, "the system ended it, as it does where memory runs out"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return None, lines[-1].strip()[:200] if lines else f"exit code {done.returncode}"


def main(argv: Sequence[str]) -> int:
    """Run the preflight that a config file describes and write what it found."""
    from lightning.pytorch.callbacks import Callback

    from lightning_ft.api import fit_config
    from lightning_ft.config import TrainingConfig

    class Ends(Callback):
        """Comes after the preflight, which is the first callback."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            raise RunInterruptedError("The preflight is all that is wanted.", ENOUGH)

    values = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    given = values.get("trainer") or {}
    callbacks = given.get("callbacks") or []
    values["trainer"] = {**given, "callbacks": [*(callbacks if isinstance(callbacks, list) else [callbacks]), Ends()]}
    config = TrainingConfig.from_dict(values)
    try:
        # All options are given: a task's defaults are among them already.
        fit_config(config, given=frozenset(values))
    except RunInterruptedError as end:
        if end.signum != ENOUGH:
            raise
    record = json.loads((Path(str(config.output)) / layout.RECORD).read_text(encoding="utf-8"))
    Path(argv[1]).write_text(json.dumps(record["preflight"]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
