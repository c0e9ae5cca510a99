"""The quickstart as a contestant: what its verdict says, as numbers of a suite.

`python -m benchmarks.quickstart OUT SEED` runs `lightning-ft quickstart` and writes OUT/measure.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(out: Path, seed: str) -> int:
    """Run it and write, for each metric, base, tuned and the difference with its interval."""
    from lightning_ft.cli import main as lightning_ft

    status = lightning_ft(["quickstart", "--seed", seed, "--output", str(out / "run")])
    if status:
        return status
    verdict = json.loads((out / "run" / "verdict.json").read_text(encoding="utf-8"))
    values: dict[str, float] = {}
    for found in verdict["comparisons"]:
        values |= {
            f"{found['metric']}_base": found["base"],
            f"{found['metric']}_tuned": found["tuned"],
            f"{found['metric']}_difference_low": found["low"],
            f"{found['metric']}_difference_high": found["high"],
        }
    record = json.loads((out / "run" / "run.json").read_text(encoding="utf-8"))
    values |= {"train_s": record["train_seconds"], "verdict_s": record["verdict_seconds"]}
    (out / "measure.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
