"""`quickstart`: fine-tune the small model that is shipped on the data that is shipped, and show what changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.parser import command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.config import TrainingConfig

DATA = Path(__file__).parents[1] / "assets" / "data" / "support.jsonl"
"""Questions to the support of a shop, with answers, split into train, validation and test."""
OPTIONS: dict[str, Any] = {
    "epochs": 8.0, "batch_size": 8, "learning_rate": 2e-3, "max_length": 256, "max_new_tokens": 64, "verdict_rows": 40,
    "log_every": 20,
}  # fmt: skip
"""What suits a model of a few million parameters; everything else is as `fit` has it."""
SAMPLES = 3


def main(argv: Sequence[str]) -> int:
    """Run it, then print the verdict, three answers before and after, and the paths."""
    parser = command(
        "quickstart",
        "Fine-tune the small model that is shipped on 280 support questions, on any machine, without a network.",
        "The same by hand: lightning-ft fit --model embedded --data FILE",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides order and new weights (default 0)")
    parser.add_argument("--output", metavar="FOLDER", help="the run folder to write; default: runs/quickstart_<n>")
    parser.add_argument("--epochs", type=float, default=OPTIONS["epochs"], help=f"default {OPTIONS['epochs']:g}")
    arguments = parser.parse_args(argv)

    from lightning_ft import api

    config = quickstart_config(seed=arguments.seed, output=arguments.output, epochs=arguments.epochs)
    run = api.fit_config(config, given=frozenset({*OPTIONS, "model", "data", "seed"}))
    show(run)
    return 0


def quickstart_config(**options: Any) -> TrainingConfig:
    """The run's config."""
    from lightning_ft.config import TrainingConfig

    name = None if options.get("output") else "quickstart"
    return TrainingConfig(**{"model": "embedded", "data": [str(DATA)], "name": name, **OPTIONS, **options})


def show(run: Any) -> None:
    """The verdict's table, samples before and after, and where everything is."""
    folder = Path(run.folder)
    verdict = read_verdict(folder)
    if verdict:
        print(verdict_table(verdict))
        for sample in verdict.get("samples", ())[:SAMPLES]:
            print(f"\nQuestion  {sample['prompt']}\nBefore    {sample['base']}\nAfter     {sample['tuned']}")
            if sample.get("reference"):
                print(f"Expected  {sample['reference']}")
    print(f"\nRun folder: {folder}")
    if (folder / "report.html").is_file():
        print(f"Report:     {folder / 'report.html'}")
    print(f"Talk to it: lightning-ft chat {folder}")


def read_verdict(folder: Path) -> dict[str, Any]:
    """What `verdict.json` of a run says; empty when there is none."""
    path = folder / "verdict.json"
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def verdict_table(verdict: dict[str, Any]) -> str:
    """Base against tuned, metric by metric, with the interval of the difference."""
    from lightning_ft.cli.tables import number, percent_names, table

    metrics: dict[str, Any] = verdict["metrics"]
    shares = percent_names(list(metrics))
    rows = []
    for name, row in metrics.items():
        show = [number(float(row[key]), percent=name in shares) for key in ("base", "tuned")]
        interval = row.get("interval")
        between = " to ".join(number(float(x), percent=name in shares) for x in interval) if interval else "-"
        rows.append((name, *show, between))
    return table(("metric", "before", "after", "difference, 95 %"), rows, numbers=frozenset({1, 2, 3}))
