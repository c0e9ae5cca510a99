"""`data check`: what is wrong with a data file, with the line of each issue."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lightning_ft.cli.parser import STDOUT, add_json, check_json
from lightning_ft.errors import UsageError
from lightning_ft_datatools.commands.parser import add_survey, parsed, survey_options, tool
from lightning_ft_datatools.fix import fix_target
from lightning_ft_datatools.targets import check_parent, check_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from lightning_ft_datatools.findings import Report
    from lightning_ft_datatools.survey import Options

STRICT_EXIT = 3
"""Exit code of `--strict` where there are issues, as for every check that did not pass."""


def main(argv: Sequence[str]) -> int:
    """Check, report, and clean on request."""
    parser = tool(
        "check",
        "What is wrong with data files: unreadable and empty rows, duplicates, leaks, secrets, style, lengths and more.",
        "rows.jsonl --model PATH --output report.html",
    )
    add_survey(parser)
    parser.add_argument("--strict", action="store_true", help=f"exit code {STRICT_EXIT} if there is an error or a warning")
    add_json(parser, "the report")
    parser.add_argument("--output", metavar="FILE", help="write the report as an HTML page")
    parser.add_argument("--fix", metavar="FILE", help="write the cleaned rows, the quarantined ones and a list of changes")
    parser.add_argument("--lower", action="store_true", help="with --fix: all texts in lower case")
    parser.add_argument("--shown", type=int, default=3, metavar="N", help="issues of a kind on the terminal (default: 3)")
    arguments = parsed(parser, argv)
    if arguments.shown < 0:
        raise UsageError(f"Expected --shown to be at least 0; got {arguments.shown}.")
    if arguments.lower and not arguments.fix:
        raise UsageError("Expected --lower together with --fix FILE, which it changes; got it alone.")
    if arguments.fix:
        fix_target(arguments.fix, arguments.files)
    for flag in ("json", "output"):
        if (name := getattr(arguments, flag)) is not None and (flag, name) != ("json", STDOUT):
            check_parent(check_target(name, arguments.files, f"--{flag}"))
    check_json(arguments.json)
    return _run(arguments.files, survey_options(arguments), arguments)


def _run(names: Sequence[str], options: Options, arguments: object) -> int:
    from lightning_ft_datatools.progress import Progress
    from lightning_ft_datatools.survey import STEPS, survey

    with Progress(STEPS).running() as progress:
        report, found = survey(names, options, progress)
    given = vars(arguments)
    _write(report, given["json"], given["output"], given["shown"])
    if given["fix"]:
        from lightning_ft_datatools.fix import fix

        print(fix(found, report, given["fix"], lower=given["lower"]).summary(), file=_beside(given["json"]))
    return STRICT_EXIT if given["strict"] and _severe(report) else 0


def _beside(json_file: str | None) -> TextIO:
    """Where lines go that are no report: away from a report that somebody reads from standard output as JSON."""
    return sys.stderr if json_file == STDOUT else sys.stdout


def _severe(report: Report) -> bool:
    from lightning_ft_datatools.findings import KINDS

    return any(KINDS[kind].severity != "note" for kind in report.counts)


def _write(report: Report, json_file: str | None, page: str | None, shown: int) -> None:
    import json

    from lightning_ft_datatools.output import write
    from lightning_ft_datatools.terminal import lines

    as_json = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
    print(as_json if json_file == STDOUT else "\n".join(lines(report, shown)))
    if json_file and json_file != STDOUT:
        write(json_file, as_json + "\n")
        print(f"report: {json_file}")
    if page:
        from lightning_ft_datatools.page import page as rendered

        write(page, rendered(report))
        print(f"report: {page}", file=_beside(json_file))
