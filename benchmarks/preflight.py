"""What the preflight says a run will take, and what the same run then takes: memory and time of two processes.

With `--predict` a process trains no step: it ends when the preflight has spoken, and hands out its two numbers as its own.
Without, it trains without a preflight, so that nothing but the training itself is measured; its peak memory is the
kernel's, taken from outside.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting


def main() -> None:
    """Train or predict; write `measure.json`."""
    import lightning_ft
    from lightning_ft.errors import RunInterruptedError
    from lightning_ft.run.preflight import Preflight

    setting, folder, predict = Setting.load(sys.argv[1]), Path(sys.argv[2]), "--predict" in sys.argv[3:]
    if predict:
        begin = Preflight.on_train_start

        def end_there(*args: Any) -> None:
            begin(*args)
            raise RunInterruptedError("The preflight is all that is wanted.", 15)

        setattr(Preflight, "on_train_start", end_there)  # noqa: B010 - the run ends here; a plain assignment is no method
    options, run = setting.options, folder / "run"
    try:
        lightning_ft.fit(
            model=setting.model, data=str(setting.folder / "train.jsonl"), val_data=[str(setting.folder / "heldout.jsonl")],
            split=[1.0, 0.0], max_length=options["max_length"], batch_size=options["batch_size"], epochs=1,
            eval_every=options["eval_every"], seed=options["seed"], verdict_rows=0, preflight=predict, output=str(run),
        )  # fmt: skip
    except RunInterruptedError:
        if not predict:
            raise
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    measured: dict[str, float] = {"fit_s": record["train_seconds"]} if not predict else {
        "fit_s": record["preflight"]["total_seconds"], "peak_mb": record["preflight"]["peak_memory"] / 2**20,
    }  # fmt: skip
    (folder / "measure.json").write_text(json.dumps(measured) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
