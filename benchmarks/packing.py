"""How full packed rows are on real data, and how many of their tokens nothing is learned from.

`python -m benchmarks.packing SETTING OUT FILE [OPTION=VALUE ...]` with options of `fit` that decide how rows are packed. No
model is needed: the tokenizer and its chat template are real, and everything before training is what `fit` does.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MICRO_TOKENS = 2048
"""Most tokens of a micro-batch where the options do not say, as on a CPU."""


def build(options: dict[str, Any], data: Path, folder: Path) -> None:
    """Write the tokenizer and copies of the files."""
    shutil.copytree(data / options["tokenizer"], folder / "model")
    for name, path in options["files"].items():
        shutil.copy(data / path, folder / f"{name}{Path(path).suffix}")
    (folder / "setting.json").write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")


def micro_batches(data: Any) -> Iterator[tuple[int, ...]]:
    """The rows of each micro-batch of an epoch, those left out that only keep a rank in step."""
    for number in range(data.schedule.total_steps):
        plan = data.schedule.step(number)
        for rank, cut in enumerate(plan.ranks):
            yield from (micro for i, micro in enumerate(cut) if (rank, i) not in plan.fillers)


def behind(labels: Sequence[int]) -> int:
    """Tokens behind the last one that is trained: no loss needs them."""
    trained = np.flatnonzero(np.asarray(labels) >= 0)
    return len(labels) - 1 - int(trained[-1]) if len(trained) else len(labels)


def measure(file: Path, model: Path, max_length: int, given: dict[str, Any]) -> dict[str, float]:
    """The numbers of one file."""
    from transformers import AutoTokenizer

    from lightning_ft import plugins
    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.datamodule import FineTuneData
    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.pipeline import Pipeline
    from lightning_ft.data.render import Template
    from lightning_ft.registry import Registry
    from lightning_ft.run.planning import Planner
    from lightning_ft.run.world import World
    from lightning_ft.types import Conversation

    config = TrainingConfig(model=str(model), data=[str(file)], split=[1.0, 0.0, 0.0], epochs=1, max_lost=1.0, **given)
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), max_length)
    pipeline = Pipeline(config, Registry(*plugins.load()), encoder, None, (Conversation,), lambda line: None)
    tables = pipeline.prepare().tables
    planner = Planner(config, World(1, 1, 0), packed=True, micro_tokens=MICRO_TOKENS)
    data = FineTuneData(tables, planner.whole(tables["train"], lambda line: None), tokenizer.pad_token_id or 0)
    lengths = tables["train"].lengths
    tokens = [int(lengths[list(micro)].sum()) for micro in micro_batches(data)]
    positions = [data.filled(number) for number in tokens]
    tails = sum(behind(tables["train"][i].labels) for i in range(len(lengths)))
    return {
        "rows": len(lengths), "mean_tokens": float(lengths.mean()), "micro_batches": len(tokens),
        "full": sum(tokens) / (len(tokens) * (config.batch_tokens or MICRO_TOKENS)), "real": sum(tokens) / sum(positions),
        "shapes": len(set(positions)), "behind_last_label": tails / int(lengths.sum()),
    }  # fmt: skip


def main() -> None:
    """Measure and write `measure.json`."""
    folder, out, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    given = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in sys.argv[4:])}
    (file,) = folder.glob(f"{name}.*")
    found = measure(file, folder / "model", options["max_length"], given)
    (out / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
