"""TRL's DPOTrainer at its best plain setting on a CPU: that of `trl.py`, and pairs of like length together.

The trainer takes lengths from a column of that name only. Options as `NAME=VALUE`, as `precompute_ref_log_probs=true`: the
reference before the first step, else within each step.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.trl import configured, train

if TYPE_CHECKING:
    from benchmarks.setting import Setting


def pairs(setting: Setting) -> Any:
    """The training pairs as TRL's data set, the longest first, so that the reference's batches are of like length, too."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    rows = [
        {
            "prompt": line["messages"], "chosen": line["chosen"], "rejected": line["rejected"],
            "length": max(len(text["input_ids"]) for text in texts),
        }
        for line, texts in zip(setting.lines("train"), setting.encoded_pairs("train", tokenizer), strict=True)
    ]  # fmt: skip
    return Dataset.from_list(sorted(rows, key=lambda row: -row["length"]))


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    from trl import DPOConfig, DPOTrainer

    setting, folder = arguments()
    more = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in sys.argv[3:])}
    config = DPOConfig(**{**configured(setting, folder), "beta": setting.options["beta"], "remove_unused_columns": False, **more})
    clock.write(folder, setting, train(DPOTrainer, config, pairs(setting), setting, folder))


if __name__ == "__main__":
    main()
