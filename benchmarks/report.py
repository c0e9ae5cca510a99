"""Print a result file as a Markdown table and hold it against its targets: exit 3 when one is missed.

`python -m benchmarks.report benchmarks/results/FILE.json`; `--write`: the newest file of each suite into benchmarks/README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REQUIRED = (
    "schema", "suite", "title", "date", "revision", "complete", "hardware", "versions", "rounds", "summary", "ratios",
    "targets",
)  # fmt: skip
HERE = Path(__file__).parent
MARKS = ("<!-- results -->\n", "<!-- /results -->")
"""Between these stand the tables in benchmarks/README.md."""
ACROSS = 12
"""Most metrics that are columns of a table."""


def load(path: Path) -> dict[str, Any]:
    """A result file, with the parts that make it comparable.

    Raises:
        ValueError: a part is missing.
    """
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in REQUIRED if key not in result]
    if missing:
        raise ValueError(f"{path}: expected {', '.join(missing)} in a result file; run the suite again.")
    return result


def table(result: dict[str, Any]) -> str:
    """Median (least to greatest) of every metric: a line per contestant, or per metric where those are too many for columns."""
    summary = result["summary"]
    metrics = list(dict.fromkeys(metric for values in summary.values() for metric in values))
    cells = {(name, metric): _cell(spread) for name, values in summary.items() for metric, spread in values.items()}
    if len(metrics) <= ACROSS:
        rows = [["contestant", *metrics], *([name, *(cells.get((name, metric), "") for metric in metrics)] for name in summary)]
    else:
        rows = [["metric", *summary], *([metric, *(cells.get((name, metric), "") for name in summary)] for metric in metrics)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def check(result: dict[str, Any]) -> list[tuple[str, bool]]:
    """Each target with what was measured, and whether it was met.

    A comparison is met by the median of the ratios of the rounds; `within` bounds the distance of that ratio from 1.
    """
    ratios = {(entry["metric"], entry["of"], entry["over"]): entry for entry in result["ratios"]}
    found = []
    for target in result["targets"]:
        metric, of, over = target["metric"], target["of"], target.get("over")
        measured = ratios.get((metric, of, over)) if over else result["summary"].get(of, {}).get(metric)
        subject = f"{metric} of {of}" + (f" / {over}" if over else "")
        if measured is None:
            found.append((f"{subject}: not measured", False))
            continue
        value = measured["median"]
        if "at_least" in target:
            wanted, met = f"at least {target['at_least']}", value >= target["at_least"]
        elif "at_most" in target:
            wanted, met = f"at most {target['at_most']}", value <= target["at_most"]
        else:
            wanted, met = f"within {target['within']:.0%}", abs(value - 1) <= target["within"]
        found.append((f"{subject}: {_cell(measured)}, wanted {wanted}", met))
    return found


def render(result: dict[str, Any], *, level: int = 2, versions: bool = True) -> str:
    """The whole report as Markdown, under a heading of that level."""
    hardware, numbers = result["hardware"], {entry["round"] for entry in result["rounds"]}
    revision = (result["revision"] or "unknown")[:12]
    gpu = f"{hardware['gpu']}, {hardware['gpu_memory_gb']} GB, driver {hardware['gpu_driver']}; " if "gpu" in hardware else ""
    lines = [
        f"{'#' * level} {result['title']}",
        "",
        f"{result['date'][:10]}, revision {revision}, {gpu}{hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['threads']} threads, {hardware['memory_gb']} GB, {' '.join(hardware['flags'])}; "
        f"{len(numbers)} rounds, median (least to greatest).",
        "",
        table(result),
        "",
    ]
    if result.get("untrained"):
        found = ", ".join(f"{metric} {value:.4f}" for metric, value in result["untrained"].items())
        lines += [f"Before training: {found}.", ""]
    if result.get("left_out"):
        lines += [f"Left out, as this processor has no fast bfloat16: {', '.join(result['left_out'])}.", ""]
    if result.get("failed"):
        lines += [f"Failed, and not measured any further: {', '.join(result['failed'])}.", ""]
    lines += [f"- {'met' if met else 'MISSED'}: {line}" for line, met in check(result)]
    for name, packages in result["versions"].items() if versions else ():
        lines.append(f"- {name}: {', '.join(f'{package} {version}' for package, version in packages.items())}")
    return "\n".join(lines)


def _cell(spread: dict[str, float]) -> str:
    median, least, greatest = (f"{spread[key]:.4g}" for key in ("median", "min", "max"))
    return median if least == greatest else f"{median} ({least} to {greatest})"


def newest(folder: Path) -> list[dict[str, Any]]:
    """Of each suite the complete result that was measured last."""
    found: dict[str, dict[str, Any]] = {}
    for result in sorted((load(path) for path in folder.glob("*.json")), key=lambda result: str(result["date"])):
        if result["complete"]:
            found[result["suite"]] = result
    return [found[suite] for suite in sorted(found)]


def page(text: str, results: list[dict[str, Any]]) -> str:
    """The text of benchmarks/README.md with the tables of these results."""
    before, _, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"benchmarks/README.md: expected {MARKS[0].strip()} and {MARKS[1]} in it.")
    tables = "\n\n".join(render(result, level=3, versions=False) for result in results)
    return f"{before}{MARKS[0]}{tables}\n{MARKS[1]}{after}"


def main(argv: list[str]) -> int:
    """Print the reports of the files named; 3 when a target of a complete run is missed."""
    if argv == ["--write"]:
        readme = HERE / "README.md"
        readme.write_text(page(readme.read_text(encoding="utf-8"), newest(HERE / "results")), encoding="utf-8")
        return 0
    if not argv:
        print("error: expected result files; type python -m benchmarks.report benchmarks/results/FILE.json", file=sys.stderr)
        return 2
    missed = False
    for name in argv:
        try:
            result = load(Path(name))
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(render(result) + "\n")
        if not result["complete"]:
            print("A trial (fewer rounds, rows or contestants than the suite): targets do not count.\n")
        elif not all(met for _, met in check(result)):
            missed = True
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
