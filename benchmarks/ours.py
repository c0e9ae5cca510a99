"""lightning-ft on the setting of a training suite, by its Python door and its defaults; further options as `NAME=VALUE`.

Precision, batching by length and the chunked head are what `fit` does by itself; only what the setting fixes for all
contestants is said here, and what would add work that the others do not do (verdict, preflight, validation) is off.
LoRA: bf16 base weights, float32 adapter, no autocast. Full fine-tuning: float32 weights under bf16 autocast, but for another
`master_weights`. On pairs it learns by DPO.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.baselines.measure import Clock, arguments

if TYPE_CHECKING:
    from benchmarks.setting import Setting


def train(setting: Setting, folder: Path, **more: Any) -> Path:
    """Train one epoch; the folder of what was trained."""
    import lightning_ft

    options = setting.options
    lora: dict[str, Any] = {"name": "lora", **{name: options[name] for name in ("rank", "alpha") if name in options}}
    given = {
        "method": options.get("method", lora), "epochs": 1, "batch_size": options["batch_size"],
        "max_length": options["max_length"], "learning_rate": options["learning_rate"], "lr_scheduler": "linear", "warmup": 0,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": options["seed"], "verdict_rows": 0, "preflight": False,
        "eval_every": 10**9, "save_every": 0, "split": [1.0, 0.0], "data": str(setting.folder / "train.jsonl"),
        "output": str(folder / "run"),
    }  # fmt: skip
    if setting.pairs:
        given |= {"task": "preference", "objective": {"name": "dpo", "beta": options["beta"]}}
    run = lightning_ft.fit(model=setting.model, **{**given, **more})
    return Path(run.folder) / "final_model"


def main() -> None:
    """Train one epoch; the run folder holds what was trained."""
    clock = Clock()
    setting, folder = arguments()
    more = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in sys.argv[3:])}
    clock.write(folder, setting, train(setting, folder, **more))


if __name__ == "__main__":
    main()
