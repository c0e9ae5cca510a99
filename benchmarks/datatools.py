"""`lightning-ft data check` and `data select` on real rows, as a user types them.

`python -m benchmarks.datatools SETTING OUT check|select`
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any


def build(options: dict[str, Any], data: Path, folder: Path) -> None:
    """Write checked.jsonl, the rows of the first file, and rows.jsonl, rows of all files one after the other up to a number."""
    lines = [(data / name).read_text(encoding="utf-8").splitlines() for name in options["data"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checked.jsonl").write_text("\n".join(lines[0]) + "\n", encoding="utf-8")
    chosen = list(itertools.islice(itertools.chain(*lines), options["rows"]))
    if len(chosen) < options["rows"]:
        raise ValueError(f"Expected {options['rows']} rows in {', '.join(options['data'])}, found {len(chosen)}.")
    (folder / "rows.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    (folder / "setting.json").write_text(
        json.dumps({**options, "checked_rows": len(lines[0])}, indent=1) + "\n", encoding="utf-8"
    )


def main() -> None:
    """One command; time and memory are taken from outside."""
    from lightning_ft.cli import main as lightning_ft

    folder, out, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    argv = {
        "check": ["data", "check", str(folder / "checked.jsonl"), "--json", str(out / "report.json")],
        "select": [
            "data",
            "select",
            str(folder / "rows.jsonl"),
            "--count",
            str(options["count"]),
            "--output",
            str(out / "few.jsonl"),
        ],
    }[what]
    if status := lightning_ft(argv):
        raise SystemExit(status)
    rows = sum(1 for _ in (out / "few.jsonl").open(encoding="utf-8")) if what == "select" else options["checked_rows"]
    (out / "measure.json").write_text(json.dumps({"rows": float(rows)}), encoding="utf-8")


if __name__ == "__main__":
    main()
