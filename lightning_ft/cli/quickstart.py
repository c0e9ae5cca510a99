"""`quickstart`: fine-tune the small model that is shipped on the data that is shipped, and show what changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.cli.fit import show_verdict
from lightning_ft.cli.parser import command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.api import Run
    from lightning_ft.config import TrainingConfig

DATA = Path(__file__).parents[1] / "assets" / "data" / "support.jsonl"
"""Questions to the support of a shop, with answers, split into train, validation and test."""
OPTIONS: dict[str, Any] = {
    "epochs": 10.0, "batch_size": 8, "learning_rate": 1e-3, "max_length": 256, "max_new_tokens": 64, "verdict_rows": 80,
    "log_every": 20,
}  # fmt: skip
"""What suits a model of a few million parameters; everything else is as `fit` has it."""
SAMPLES = 3
LONGEST = 160
"""Characters of an answer that are shown; the run folder has all."""


def main(argv: Sequence[str]) -> int:
    """Run it, then print the verdict, three answers before and after, and the paths."""
    parser = command(
        "quickstart",
        "Fine-tune the small model that is shipped on 280 support questions, on any machine, without a network.",
        "The same by hand: lightning-ft fit --model embedded --data FILE",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides order and new weights (default 0)")
    parser.add_argument("--output", metavar="FOLDER", help="the run folder to write; default: runs/quickstart_<n>")
    parser.add_argument("--epochs", type=float, help="passes over the 280 rows; default: what suits the method")
    arguments = parser.parse_args(argv)

    from lightning_ft import api
    from lightning_ft.run.world import world

    given = {"epochs": arguments.epochs} if arguments.epochs is not None else {}
    config = quickstart_config(seed=arguments.seed, output=arguments.output, **given)
    run = api.fit_config(config, given=frozenset({*OPTIONS, "model", "data", "seed"}))
    if world(config).main:
        show(run)
    return 0


def quickstart_config(**options: Any) -> TrainingConfig:
    """The run's config."""
    from lightning_ft.config import TrainingConfig
    from lightning_ft.registry import registry

    entry = registry().methods.default()
    suited = dict(entry.cls.quickstart)
    suited["method"] = {"name": entry.name, **suited.get("method", {})}
    name = None if options.get("output") else "quickstart"
    return TrainingConfig(**{"model": "embedded", "data": [str(DATA)], "name": name, **OPTIONS, **suited, **options})


def show(run: Run) -> None:
    """The verdict, answers before and after, and where everything is."""
    show_verdict(run.verdict)
    for sample in run.verdict.samples[:SAMPLES] if run.verdict is not None else ():
        print(f"\nQuestion  {question(sample)}\nBefore    {_line(sample['before'])}\nAfter     {_line(sample['after'])}")
        if sample["reference"] is not None:
            print(f"Expected  {_line(sample['reference'])}")
    print(f"\nRun folder: {run.folder}")
    if (run.folder / layout.REPORT).is_file():
        print(f"Report:     {run.folder / 'report.html'}")
    print(f"Talk to it: lightning-ft chat {run.folder}")


def question(sample: Mapping[str, Any]) -> str:
    """What the user asked, from the row that the sample names (its prompt is rendered by the template)."""
    row = json.loads(DATA.read_text(encoding="utf-8").splitlines()[int(sample["row"].rpartition(":")[2]) - 1])
    asked = next((turn["content"] for turn in row.get("messages", ()) if turn["role"] == "user"), row.get("instruction"))
    return str(asked)


def _line(text: str) -> str:
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."
