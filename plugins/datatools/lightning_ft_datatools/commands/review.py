"""`data review`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft_datatools.commands.parser import add_survey, parsed, survey_options, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code after Ctrl-C, as everywhere."""


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
        "--severity", choices=("error", "warning", "note"), default="warning", help="and worse (default: warning)"
    )
    parser.add_argument("--all", action="store_true", help="every row, also those without an issue")
    arguments = parsed(parser, argv)
    for kind in arguments.kind:
        if kind not in KINDS:
            raise UsageError(f"Expected --kind to be one of {', '.join(KINDS)}; got '{kind}'.{did_you_mean(kind, KINDS)}")
    output = Path(arguments.output)
    if output.suffix != ".jsonl":
        raise UsageError(f"Expected --output to name a .jsonl file, got '{output}'; type {output.with_suffix('.jsonl')}.")
    if not output.parent.is_dir():
        raise UsageError(f"Expected a folder for '{output}', but there is none; type mkdir -p '{output.parent}'.")
    return _run(arguments, output)


def _run(arguments: Any, output: Path) -> int:
    from lightning_ft.data.sources import expand
    from lightning_ft_datatools.desk import KEYS, Desk
    from lightning_ft_datatools.output import write_rows
    from lightning_ft_datatools.progress import Progress
    from lightning_ft_datatools.reviewing import Journal, flagged, outcome, place_of
    from lightning_ft_datatools.survey import STEPS, survey

    if output.resolve() in {path.resolve() for path in expand(arguments.files)}:
        raise UsageError(f"Expected --output to name a new file, got '{output}', which is read; type another name.")
    with Progress(STEPS).running() as progress:
        report, found = survey(arguments.files, survey_options(arguments), progress)
    items = flagged(found, report, kinds=arguments.kind, severity=arguments.severity, everything=arguments.all)
    others = {place_of(row): row for row in found.rows}
    desk = Desk(items, others, found.task, Journal(output.with_suffix(".review.jsonl")))
    left = len(desk.open_items())
    print(f"{len(items):,} of {len(found.rows):,} rows to look at, {len(items) - left:,} of them decided earlier\n{KEYS}")
    code = 0
    try:
        desk.run()
    except KeyboardInterrupt:
        print()
        code = INTERRUPTED
    done = outcome(found, report, items, desk.journal)
    paths = done.write(output)
    write_rows(output, [values for _, values in done.kept])
    print(
        f"{output}: {len(done.kept):,} rows, {done.changed:,} of them edited; {paths[0]}: {len(done.taken):,} rows;"
        f" {paths[1]}: every change"
    )
    if undecided := len(desk.open_items()):
        print(f"{undecided:,} rows are undecided and kept as they are: type the same again to go on")
    return code
