"""`lightning-ft rate`: people say which of two models' answers is better, without knowing whose they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.evaluate import add_execution, permit_execution, split_names
from lightning_ft.cli.parser import CommandParser, choice_of, command
from lightning_ft.cli.sampling import add_sampling, given_sampling
from lightning_ft.errors import UsageError
from lightning_ft_compare.judge import CRITERIA, criteria_of
from lightning_ft_compare.results import LEVEL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lightning_ft_compare.evaluations import Side
    from lightning_ft_compare.rating.folder import Ratings
    from lightning_ft_compare.rating.pairs import Answers
    from lightning_ft_compare.rating.session import Session

PURPOSE = """People say which of two models' answers is better, in the terminal or on a local page, and do not see whose they
are before the end: win rates with intervals, and a file of preferences that training reads. Type the same again to go on."""
EXAMPLE = """example: lightning-ft rate --models embedded runs/support_1 --data test.jsonl --rows 50 --output rated"""
KNOWN = {"overall": "Which answer is better, all in all?", **CRITERIA}
"""Criteria that have a name."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as everywhere."""
MOST_PORT = 65_535


def parser() -> CommandParser:
    """The command's flags."""
    made = command("rate", PURPOSE, EXAMPLE)
    add = made.add_argument
    add(
        "--models", nargs="+", default=[], metavar="MODEL",
        help="two of them: run folders, adapters, model folders, hub ids, embedded, or folders that `evaluate` wrote",
    )  # fmt: skip
    add("--predictions", nargs="+", default=[], metavar="FILE", help="two .jsonl files of prompt and prediction instead")
    add("--data", nargs="+", default=[], metavar="FILE", help="files, globs or folders; not needed for answers that exist")
    add("--rows", type=int, metavar="N", help="rate a sample of N rows, drawn by --seed; default: all")
    add(
        "--criteria", nargs="+", default=["overall"], metavar="NAME",
        help=f"of {', '.join(KNOWN)} (default: overall), or texts of several words; the first one decides preferences",
    )  # fmt: skip
    add("--rater", default="rater", metavar="NAME", help="who rates; several may, one after the other (default: rater)")
    add("--output", metavar="FOLDER", help="the folder to write, or to go on with; default: runs/rate_<n>")
    add("--page", action="store_true", help="rate on a page of this machine's browser instead of in the terminal")
    add("--port", type=int, metavar="N", help="of the page; default: 0, a free one")
    add("--result", action="store_true", help="ask nothing: the result of what is rated so far, with the models' names")
    add("--level", type=float, default=LEVEL, metavar="P", help=f"coverage of each interval (default: {LEVEL})")
    group = made.add_argument_group("models that have no answers yet are evaluated")
    add = group.add_argument
    add("--metrics", nargs="+", metavar="NAME", help="one of them has to read text; default: those of the task")
    said = (
        "what a row is, a name or {name: NAME, option: value}; auto: as in the first run among the models, else by its columns"
    )
    add("--task", default="auto", help=said)
    add("--template", metavar="NAME", help="chat, alpaca, tags or a Jinja file; default: each model's own")
    add("--max_length", type=int, metavar="N", help="longest row in tokens; default: each model's, at most 2048")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of the weights; default: as they are stored")
    add_execution(made)
    add_sampling(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Ask, and at the end show and write what came of it."""
    arguments = parser().parse_args(argv)
    _check(arguments)
    criteria = criteria_of(arguments.criteria, KNOWN)
    permit_execution(arguments)

    from lightning_ft.run.folder import RunFolder, check_writable
    from lightning_ft_compare.evaluations import claimed
    from lightning_ft_compare.rating.folder import RATINGS, Ratings

    with claimed(arguments.output, "rate") as folder:
        check_writable(folder)
        if arguments.result and not Ratings(folder / RATINGS).all():
            raise UsageError(f"Expected ratings in '{folder}' for --result, got none; name their folder with --output.")
        held = RunFolder(folder, kind="Rating")
        held.lock()
        try:
            return _rate(arguments, criteria, folder)
        finally:
            held.release()


def _check(arguments: Any) -> None:
    """Refuse what can be refused before anything runs."""
    from lightning_ft_compare.evaluations import check_models, check_read

    making = {"data": arguments.data, "task": None if arguments.task == "auto" else arguments.task, **_making(arguments)}
    if arguments.predictions:
        given = next((name for name, value in {"models": arguments.models, **making}.items() if value not in (None, [])), None)
        if given is not None:
            raise UsageError(f"Expected --predictions without --{given}, as the answers are there; got both.")
    else:
        check_models(arguments.models, arguments.data)
        check_read(arguments.models, making)
        if len(arguments.models) > 2:
            raise UsageError(f"Expected --models to name two models, got {len(arguments.models)}; rate them in pairs.")
    if arguments.rows is not None and arguments.rows < 1:
        raise UsageError(f"Expected --rows to be at least 1; got {arguments.rows}.")
    if not arguments.rater.strip():
        raise UsageError("Expected --rater to be a name; got none.")
    if not 0.5 <= arguments.level < 1:
        raise UsageError(f"Expected --level to be from 0.5 to below 1; got {arguments.level:g}, as in 0.95.")
    if arguments.port is not None and not arguments.page:
        raise UsageError(f"Expected --port {arguments.port} together with --page; got it alone.")
    if not 0 <= (arguments.port or 0) <= MOST_PORT:
        raise UsageError(f"Expected --port to be from 0 to {MOST_PORT}; got {arguments.port}.")


def _making(arguments: Any) -> dict[str, Any]:
    """Options of models that have no answers yet; None where they are not given. The seed is that of the ratings, too."""
    names = ("metrics", "template", "max_length", "precision")
    sampling = {name: value for name, value in given_sampling(arguments).items() if name != "seed"}
    return {**{name: getattr(arguments, name) for name in names}, **sampling}


def _rate(arguments: Any, criteria: Mapping[str, str], folder: Path) -> int:
    from lightning_ft_compare.rating.folder import RATINGS, Ratings, check_pairs
    from lightning_ft_compare.rating.pairs import answers_of, digest_of
    from lightning_ft_compare.rating.session import Session

    seed = arguments.seed or 0
    sides = _sides(arguments, criteria, folder)
    pairs = answers_of(sides, seed)
    check_pairs(folder, digest_of(pairs))
    ratings = Ratings(folder / RATINGS)
    session = Session(pairs[: arguments.rows], criteria, ratings, arguments.rater.strip(), seed)
    code = 0 if arguments.result else _ask(arguments, session)
    left = session.total - session.answered
    if not arguments.result and left:
        print(
            f"{session.answered:,} of {session.total:,} pairs are rated, {left:,} are left: type the same again with --output "
            f"{folder} to go on, or with --result to see what came of it so far"
        )
        return code
    if not arguments.result:
        session.finish()
    _close(sides, pairs, ratings, criteria, folder, arguments.level)
    return code


def _ask(arguments: Any, session: Session) -> int:
    from lightning_ft_compare.rating.desk import ask
    from lightning_ft_compare.rating.server import serve

    print(f"{session.total:,} pairs to rate, {session.answered:,} of them rated earlier")
    try:
        if session.total and arguments.page:
            serve(session, arguments.port or 0)
        elif session.total:
            ask(session)
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    return 0


def _sides(arguments: Any, criteria: Mapping[str, str], folder: Path) -> list[Side]:
    """Both models' answers, made where they do not exist; the folder remembers what was asked for."""
    from lightning_ft_compare.evaluations import Request, gather, is_evaluation, own_folder, place_of
    from lightning_ft_compare.rating.folder import begin
    from lightning_ft_compare.rating.pairs import read_sides

    names: list[str] = arguments.predictions or arguments.models
    asked: dict[str, Any] = {
        "models": [place_of(name) for name in arguments.models], "data": [place_of(name) for name in arguments.data],
        "predictions": [place_of(name) for name in arguments.predictions], "criteria": dict(criteria),
        "seed": arguments.seed or 0,
    }  # fmt: skip
    if arguments.predictions:
        sides = read_sides(names)
        begin(folder, asked)
        return sides
    options = {name: value for name, value in _making(arguments).items() if value is not None and name != "metrics"}
    made = [name for name in names if not is_evaluation(name)]
    # The evaluation of a model beside one that exists has to be of all rows of that one.
    most = arguments.rows if len(made) == len(names) else None
    metrics, task = split_names(arguments.metrics, "--metrics"), choice_of(arguments.task, "--task")
    if made:
        asked |= {"rows": most, "metrics": metrics, "task": task, **json.loads(json.dumps(options))}
    begin(folder, asked)
    there = [own_folder(folder, letter, name) for letter, name in zip("AB", names, strict=True)]
    used = [str(own) if is_evaluation(str(own)) else name for own, name in zip(there, names, strict=True)]
    request = Request(list(arguments.data), metrics, task, most, {**options, "seed": arguments.seed or 0})
    return gather(used, request, folder, lambda _: None, blind=True)


def _close(
    sides: Sequence[Side], pairs: Sequence[Answers], ratings: Ratings, criteria: Mapping[str, str], folder: Path, level: float
) -> None:
    """Write the result, and show it with the models' names."""
    from lightning_ft.atomic import write_json, write_text
    from lightning_ft.cli.tables import table
    from lightning_ft_compare.rating import summary
    from lightning_ft_compare.rating.folder import PREFERENCES, RESULT
    from lightning_ft_compare.rating.preferences import preferences

    found = ratings.all()
    names = [str(side.evaluation.details.get("model") or side.name) for side in sides]
    raters = sorted({rating.rater for rating in found})
    rates = summary.rated(found, pairs, criteria, level)
    rows, counts = preferences(found, pairs, next(iter(criteria)))
    write_json(folder / RESULT, summary.as_dict(rates, names, raters, level, counts))
    write_text(folder / PREFERENCES, "".join(json.dumps(row) + "\n" for row in rows))
    print()
    for letter, name in zip("AB", names, strict=True):
        print(f"{letter}: {name}")
    for shown in (summary.counts(rates), summary.win_rates(rates, level)):
        print("\n" + table(shown.head, shown.rows, numbers=shown.numbers))
    print("\nTies, both bad and same answers count half in a win rate; Wilson intervals over pairs.")
    for name, question in criteria.items():
        if name not in KNOWN:
            print(f"{name}: {question}")
    for note in summary.notes(rates):
        print(note)
    out = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in counts if name != "rows" and counts[name])
    print(f"Preferences: {counts['rows']:,} rows by {next(iter(criteria))}{f' (left out: {out})' if out else ''}")
    print(f"Written: {folder / RESULT}, {folder / PREFERENCES}")
