"""What `plan` says a run will take, and what the same run then takes: peak memory of two processes, and how long `plan` took.

`python -m benchmarks.plan SETTING OUT predict|run METHOD TOKENS`; METHOD+KIND is the method on a base quantised to KIND.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.setting import Setting

os.environ["OMP_NUM_THREADS"] = "1"  # memory is what is measured, and other work on the machine then costs less time


def arguments(setting: Setting, method: str, tokens: str, output: Path) -> list[str]:
    """The flags of both: a few steps of micro-batches of so many tokens, nothing before and nothing behind them."""
    options = setting.options
    method, _, kind = method.partition("+")
    flags = {
        "model": setting.model, "data": str(setting.folder / "train.jsonl"), "split": "[1.0,0.0]", "method": method,
        "batch_tokens": tokens, "max_length": options["max_length"], "max_steps": options["steps"], "seed": options["seed"],
        "verdict_rows": 0, "save_every": 0, "preflight": "false", "output": output,
        **({"quantize": kind} if kind else {}),
    }  # fmt: skip
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def predict(words: list[str], method: str, out: Path) -> dict[str, float]:
    """The forecast of one method, by the command as users type it."""
    from lightning_ft.cli import main as command

    begin, plan = time.perf_counter(), out / "plan.json"
    if command(["plan", *words, "--json", str(plan)]):
        raise SystemExit(1)
    seconds = time.perf_counter() - begin
    rows = {row["name"]: row for row in json.loads(plan.read_text(encoding="utf-8"))["methods"]}
    row = rows[method.replace("+", " + ")]
    return {"peak_mb": row["memory"] / 2**20, "plan_s": seconds}


def main() -> None:
    """Do what the command line says; a run becomes the command itself, as users type it, and is measured from outside."""
    setting, out, way, method, tokens = Setting.load(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
    words = arguments(setting, method, tokens, out / "run")
    found = predict(words, method, out) if way == "predict" else {}
    (out / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    if way == "run":
        os.execv(sys.executable, [sys.executable, "-m", "lightning_ft", "fit", *words])


if __name__ == "__main__":
    main()
