"""TRL's DPOTrainer at its best plain setting on a CPU: that of `trl.py`, and pairs of like length together.

The reference is computed before the first step, once for each pair. For pairs the trainer takes lengths from
a column of that name only, and only if it removes no columns. Further options as `NAME=VALUE`.
"""

from __future__ import annotations

import sys
from operator import itemgetter
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
    return Dataset.from_list(sorted(rows, key=itemgetter("length"), reverse=True))


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    from trl import DPOConfig, DPOTrainer

    setting, folder = arguments()
    more = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in sys.argv[3:])}
    own = {"precompute_ref_log_probs": True, "remove_unused_columns": False}
    config = DPOConfig(**{**configured(setting, folder), "beta": setting.options["beta"], **own, **more})
    clock.write(folder, setting, train(DPOTrainer, config, pairs(setting), setting, folder))


if __name__ == "__main__":
    main()
