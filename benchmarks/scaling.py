"""One training run on a file of generated rows: how long it prepares and trains, and what memory it takes.

`python -m benchmarks.scaling SETTING OUT FILE [NAME=VALUE ...]`: FILE is one of the setting's `files`, the rest are options
of `fit`. With `devices` the numbers are those of the first process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks import ours
from benchmarks.baselines.measure import Clock
from benchmarks.generated import AROUND, generate_rows, word_tokenizer
from benchmarks.scale import Memory
from benchmarks.setting import Setting, save_model


def build(options: dict[str, Any], data: Path, folder: Path) -> None:
    """Write tokenizer, model, and each of `files`, whose options (`train_rows`, `row_tokens`) stand beside the setting's."""
    tokenizer = word_tokenizer(options["vocab_size"])
    tokenizer.save_pretrained(folder / "model")
    facts: dict[str, Any] = {**options, **save_model(tokenizer, options, folder / "model")}
    for name, own in options["files"].items():
        tokens = 0
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for messages in generate_rows({**options, **own}):
                file.write(json.dumps({"messages": messages}) + "\n")
                tokens += sum(len(turn["content"].split()) + AROUND for turn in messages)
        facts[f"{name}_tokens"] = tokens
    (folder / "setting.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train and write `measure.json`."""
    setting, out, file = Setting.load(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    more = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in sys.argv[4:])}
    import lightning_ft.run.session  # noqa: F401  # imports are not what is measured

    clock, memory, begin = Clock(), Memory(), time.perf_counter()
    ours.train(setting, out, data=str(setting.folder / f"{file}.jsonl"), **more)
    assert clock.begin is not None
    if int(os.environ.get("LOCAL_RANK", "0")):
        return
    # Without the first step, before which further processes are started.
    seconds = (clock.ends[-1] - clock.ends[0]) * len(clock.ends) / (len(clock.ends) - 1)
    rows, tokens = setting.options["files"][file]["train_rows"], setting.options[f"{file}_tokens"]
    share = more["max_steps"] * setting.options["batch_size"] / rows if "max_steps" in more else 1.0
    # Weights of the type that is computed with stay in their file; of others float32 copies are made.
    weights = 0.0 if setting.options.get("bf16", True) else 2 * (Path(setting.model) / "model.safetensors").stat().st_size / 1e6
    found = {
        "prepare_s": clock.begin - begin, "train_s": seconds, "steps": len(clock.ends),
        "examples_per_s": rows * share / seconds, "tokens_per_s": tokens * share / seconds,
        "beyond_model_mb": memory.beyond() - weights,
    }  # fmt: skip
    (out / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
