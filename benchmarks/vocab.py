"""Vocabularies and supervised shares: the same body and the same number of tokens under output heads of several sizes.

`python -m benchmarks.vocab SETTING OUT ours|plain_torch VOCABULARY SHARE`. The setting holds a setting of its own for each
pair. The tokenizer is the same everywhere, and smaller than the smallest vocabulary: what grows is the model alone.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.baselines import plain_torch
from benchmarks.baselines.measure import Clock
from benchmarks.generated import generate_rows, word_tokenizer
from benchmarks.setting import Setting, encode_line, save_model, write


def build(options: dict[str, Any], data: Path, folder: Path) -> None:
    """Write a model for each of `vocabularies`, and beside each the rows of every share of `supervised`."""
    tokenizer = word_tokenizer(options["words"])
    facts = dict(options)
    for vocabulary in options["vocabularies"]:
        model = folder / f"{vocabulary}" / "model"
        tokenizer.save_pretrained(model)
        sizes = save_model(tokenizer, {**options, "vocab_size": vocabulary}, model)
        facts[f"parameters_{vocabulary}"] = sizes["parameters"]
        for share in options["supervised"]:
            own = {**options, "vocab_size": options["words"], "supervised": share}
            lines = [{"messages": messages} for messages in generate_rows(own)]
            rows = [(line, encode_line(tokenizer, line, options["max_length"])) for line in lines]
            cell = cell_of(folder, vocabulary, share)
            cell.mkdir()
            (cell / "model").symlink_to(model.resolve())
            write({**own, "vocab_size": vocabulary}, sizes, {"train": rows}, cell)
    (folder / "setting.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def cell_of(folder: Path, vocabulary: int | str, share: float | str) -> Path:
    """The setting of one pair."""
    return folder / f"{vocabulary}_{share}"


def main() -> None:
    """Train one epoch and write `measure.json`."""
    clock = Clock()
    folder, out, way, vocabulary, share = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
    setting = Setting.load(cell_of(folder, vocabulary, share))
    if way == "ours":
        ours.train(setting, out)
    else:
        plain_torch.train(setting)
    weights = (Path(setting.model) / "model.safetensors").stat().st_size / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {**clock.values(setting), "weights_mb": weights, "beyond_weights_mb": peak - weights}
    (out / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
