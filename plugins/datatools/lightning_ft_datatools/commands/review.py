"""`data review`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import DataError, UsageError, did_you_mean
from lightning_ft_datatools.commands.parser import add_survey, parsed, survey_options, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import Row
    from lightning_ft_datatools.desk import Desk
    from lightning_ft_datatools.findings import Report
    from lightning_ft_datatools.fix import Cleaned
    from lightning_ft_datatools.survey import Survey

INTERRUPTED = 130
"""Exit code after Ctrl-C, as everywhere."""
_LISTED = 10  # skipped rows that the last lines name


def main(argv: Sequence[str]) -> int:
    """Ask about flagged rows, and write what was decided."""
    from lightning_ft_datatools.findings import KINDS

    parser = tool(
        "review",
        "Accept, reject or edit flagged rows one by one; goes on where it was when the same is typed again.",
        "rows.jsonl --output kept.jsonl",
    )
    add_survey(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="the kept rows, a .jsonl file")
    parser.add_argument("--kind", action="append", default=[], metavar="KIND", help="only this kind of issue; repeatable")
    parser.add_argument(
        "--severity",
        choices=("error", "warning", "note"),
        default="warning",
        help="and worse, without --kind (default: warning)",
    )
    parser.add_argument("--all", action="store_true", help="every row, also those without an issue")
    arguments = parsed(parser, argv)
    for kind in arguments.kind:
        if kind not in KINDS:
            raise UsageError(f"Expected --kind to be one of {', '.join(KINDS)}; got '{kind}'.{did_you_mean(kind, KINDS)}")
    return _run(arguments, _output(arguments))


def _output(arguments: Any) -> Path:
    """Where the kept rows go: not among what is read, neither now nor when the same is typed again."""
    from lightning_ft_datatools.fix import CHANGES, QUARANTINE
    from lightning_ft_datatools.reviewing import JOURNAL
    from lightning_ft_datatools.targets import check_rows

    names = [*arguments.files, *arguments.against]
    path = check_rows(arguments.output, names, beside=(QUARANTINE, CHANGES, JOURNAL))
    for name in names:
        given = Path(name).expanduser()
        in_folder = given.is_dir() and path.resolve().is_relative_to(given.resolve())
        if in_folder or path.absolute().match(str(given.absolute())):
            raise UsageError(
                f"Expected --output to lie apart from what is read, got '{path}' within '{name}'; name another folder for it."
            )
    return path


def _run(arguments: Any, output: Path) -> int:
    from lightning_ft_datatools.desk import KEYS, Desk
    from lightning_ft_datatools.progress import Progress
    from lightning_ft_datatools.reviewing import JOURNAL, Journal, flagged, outcome
    from lightning_ft_datatools.survey import STEPS, survey

    with Progress(STEPS).running() as progress:
        report, found = survey(arguments.files, survey_options(arguments), progress)
    if found.task is None:
        raise DataError(f"{found.files[0]}: expected rows to review, got none that can be read; `data check` says why.")
    items = flagged(found, report, kinds=arguments.kind, severity=arguments.severity, everything=arguments.all)
    desk = Desk(items, _others(report, found, arguments.against), found.task, Journal(output.with_suffix(JOURNAL)))
    left = len(desk.open_items())
    print(f"{len(items):,} of {len(found.rows):,} rows to look at, {len(items) - left:,} of them decided earlier\n{KEYS}")
    code = 0
    try:
        desk.run()
    except KeyboardInterrupt:
        print()
        code = INTERRUPTED
    done = outcome(found, report, desk.journal)
    paths = done.save(output)
    _close(report, done, desk, [output, *paths])
    return code


def _others(report: Report, found: Survey, against: Sequence[str]) -> dict[str, Row]:
    """Rows that others are compared with, by `file:line`; also those of benchmarks."""
    from lightning_ft.data.sources import expand
    from lightning_ft_datatools.desk import place_compared
    from lightning_ft_datatools.reviewing import place_of
    from lightning_ft_datatools.survey import rows_of

    named = {place_compared(finding.other) for finding in report.issues if finding.other}
    others = {place_of(row): row for row in found.rows if place_of(row) in named}
    if named - set(others):
        benchmark = (row for path in expand(against) for row in rows_of(path)[0])
        others |= {place_of(row): row for row in benchmark if place_of(row) in named}
    return others


def _close(report: Report, done: Cleaned, desk: Desk, written: Sequence[Path]) -> None:
    """The last lines: what became of every row, and how to go on."""
    unreadable = report.counts.get("unreadable", 0)
    undecided, skipped = len(desk.open_items()), desk.skipped()
    print(
        f"{report.rows_read:,} rows in = {len(done.kept):,} kept + {len(done.taken):,} in the quarantine"
        f" ({unreadable:,} of them unreadable); {done.changed:,} edited, {undecided:,} undecided"
    )
    print(f"written: {', '.join(map(str, written))}")
    if skipped:
        more = f" and {len(skipped) - _LISTED:,} more" if len(skipped) > _LISTED else ""
        print(f"skipped: {', '.join(skipped[:_LISTED])}{more}")
    if undecided:
        print(f"{undecided:,} rows are undecided and kept as they are: type the same again to go on")
