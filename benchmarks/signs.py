"""Runs with a fault on purpose, several seeds each, and which signs of trouble their verdicts give.

`python -m benchmarks.signs OUT KIND`
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS = range(5)
HEALTHY: dict[str, Any] = {
    "model": "embedded", "batch_size": 8, "epochs": 4.0, "learning_rate": 2e-4, "verdict_rows": 20, "metrics": [],
    "preflight": False, "save_every": 0,
}  # fmt: skip
FULL = {"method": "full", "learning_rate": 3e-5, "epochs": 6.0}
PLANTED: dict[str, dict[str, Any]] = {
    "healthy": {},
    "healthy_full": FULL,
    "divergence": {**FULL, "learning_rate": 0.1, "lr_scheduler": "constant", "max_grad_norm": 1e6, "warmup": 0.0},
    "loss_not_falling": {"learning_rate": 1e-8},
    "slow_convergence": {"learning_rate": 3e-5, "lr_scheduler": "constant"},
    "underfitting": {"learning_rate": 1e-4, "lr_scheduler": "constant", "epochs": 2.0},
    "overfitting": {**FULL, "learning_rate": 1e-3, "epochs": 12.0},
    "spikes": {"log_every": 1, "epochs": 8.0},
    "oscillation": {
        **FULL,
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine_with_restarts",
        "lr_cycles": 7,
        "warmup": 0.0,
        "eval_every": 5,
    },
    "forgetting": {**FULL, "learning_rate": 1e-3},
}
"""What differs from the healthy run."""


def rows(kind: str, seed: int) -> list[dict[str, Any]]:
    """The shipped rows; for `overfitting` with few of them in training, for `spikes` with two long ones of random letters."""
    from lightning_ft.loading import embedded_folder

    file = embedded_folder().parent / "data" / "support.jsonl"
    made = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    draw = random.Random(seed)
    if kind == "overfitting":
        train = [row for row in made if row["split"] == "train"]
        kept = draw.sample(train, 40)
        made = [row for row in made if row["split"] != "train"] + kept
    if kind == "spikes":
        for _ in range(2):
            noise = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=600))
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": noise}]
            made.append({"messages": turns, "intent": "noise", "split": "train"})
    return made


def run(kind: str, seed: int, folder: Path) -> list[str]:
    """Names of the signs that one run's verdict gives."""
    from lightning_ft.api import fit
    from lightning_ft.errors import TrainingError

    data = folder / f"{kind}_{seed}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, seed)), encoding="utf-8")
    output = folder / f"run_{kind}_{seed}"
    try:
        found = fit(data=str(data), output=str(output), seed=seed, **{**HEALTHY, **PLANTED[kind]}).verdict
    except TrainingError as error:  # a loss that is no number ends the run
        return ["divergence"] if "not finite" in str(error) else [f"error: {error}"]
    assert found is not None, "the shipped data have test rows"
    return [sign.name for sign in found.signs]


def main(argv: Sequence[str]) -> None:
    """Run all seeds and write `measure.json`."""
    out, kind = Path(argv[0]), argv[1]
    found = [run(kind, seed, out) for seed in SEEDS]
    print(json.dumps(found), file=sys.stderr)
    wanted = kind.replace("_", " ")
    measured = {
        "runs": len(found), "right": sum(wanted in names for names in found) / len(found),
        "flagged": sum(bool(names) for names in found), "others": sum(len(set(names) - {wanted}) for names in found),
    }  # fmt: skip
    (out / "measure.json").write_text(json.dumps(measured) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
