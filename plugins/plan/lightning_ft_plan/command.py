"""`lightning-ft plan`: which methods fit, how long they take, and which one to take, before anything trains."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any, get_args

from lightning_ft.cli.resolve import Request, check_torch_names, parse, resolve
from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_ft_plan.forecast import Row
    from lightning_ft_plan.planning import Planning
    from lightning_ft_plan.rules import Goal

HELP = """Usage: lightning-ft plan MODEL --data FILE [--memory 24GB] [--OPTION VALUE ...]

Every installed method with its trainable parameters, the memory that a run would take by part, its time, and whether that
fits; then a recommendation. No weights are loaded: a folder with config.json and a tokenizer is enough.

  --memory SIZE   what there is, as 24GB or 24GiB (default: what the machine or its GPU has)
  --device KIND   cpu or gpu (default: gpu where there is one); a gpu that is not here needs --memory
  --goal GOAL     one_task (default), several_tasks (related ones on one base), domain_shift (a slight one), new_task
  --execute       run the preflight of each method that should fit, each in a process of its own, and show what it measured
  --json FILE     write the plan as JSON ('-': to standard output)

All options of `lightning-ft fit --help` are understood: --batch_tokens, --max_length, --method.rank ..."""
VALUES, SWITCHES = ("memory", "device", "goal", "json"), ("execute",)
"""Flags of this command with and without a value."""


def main(argv: Sequence[str]) -> int:
    """Plan and print."""
    own, rest = divide(argv)
    arguments = parse(rest)
    if "help" in arguments.switches:
        print(HELP)
        return 0
    from lightning_ft_plan.machine import Device, default_device, machine_memory, parse_memory
    from lightning_ft_plan.rules import GOALS

    goal = choice("goal", own.get("goal", GOALS[0]), GOALS)
    device = choice("device", own["device"], get_args(Device)) if "device" in own else None
    memory = parse_memory(own["memory"]) if "memory" in own else None
    request = resolve(arguments)
    check_torch_names(request)
    if own.get("json", "-") != "-":
        check_writable(own["json"])
    place: Device = device or default_device()
    plan = make(request, place, machine_memory(place) if memory is None else memory, goal, execute="execute" in own)
    if own.get("json") == "-":
        print(plan_json(plan))
        return 0
    from lightning_ft_plan.terminal import lines

    print("\n".join(lines(plan)))
    if "json" in own:
        from pathlib import Path

        from lightning_ft.atomic import write_text

        write_text(Path(own["json"]), plan_json(plan) + "\n")
        print(f"Plan: {own['json']}")
    return 0


def plan_json(plan: Any) -> str:
    """The plan as a JSON object."""
    return json.dumps(plan.as_dict(), indent=1, ensure_ascii=False)


def divide(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """This command's own flags, and the words for `fit`'s parser.

    Raises:
        UsageError: a flag has no value, or one that it does not take.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--") and name in SWITCHES:
            if equals:
                raise UsageError(f"Expected {flag} without a value; got '{value}'.")
            own[name] = "true"
        elif flag.startswith("--") and name in VALUES:
            if not equals and (not words or words[0].startswith("--")):
                raise UsageError(f"Expected a value after {flag}; got nothing.")
            own[name] = value if equals else words.pop(0)
        else:
            rest.append(word)
    return own, rest


def choice(name: str, value: str, choices: Sequence[str]) -> Any:
    """The value.

    Raises:
        UsageError: it is none of the choices.
    """
    if value not in choices:
        raise UsageError(f"Expected --{name} to be one of {', '.join(choices)}; got '{value}'.{did_you_mean(value, choices)}")
    return value


def check_writable(name: str) -> None:
    """Refuse a file that could not be written, before the work.

    Raises:
        UsageError: there is no such folder, or the name is that of one.
    """
    from pathlib import Path

    path = Path(name)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"Expected --json to name a file in a folder that exists; got '{name}'.")


def make(request: Request, device: Any, memory: int, goal: Goal, *, execute: bool) -> Any:
    """The plan of a request."""
    from lightning_ft.run.quiet import say
    from lightning_ft_plan.machine import Target
    from lightning_ft_plan.planning import Planning

    config = request.config()
    if config.resume:
        raise UsageError(f"Expected plan without --resume, which has its plan behind it; got {config.resume}.")
    planning = Planning(config, request.given, Target(device, memory, config.precision), say)
    total = len(planning.methods()) + 1
    with progress("planning", total) as advance:
        rows = []
        for row in planning.rows():
            rows.append(row)
            advance(row.name)
    if execute:
        rows = executed(rows, planning, memory)
    return planning.plan(rows, goal)


def executed(rows: list[Row], planning: Planning, memory: int) -> list[Row]:
    """The rows, with measurements for those that should fit."""
    from lightning_ft_plan.trial import measured

    wanted = [row for row in rows if row.verdict(memory) in ("fits", "tight")]
    done = {}
    with progress("measuring", len(wanted)) as advance:
        for row in wanted:
            done[row.name] = measured(row, planning.config)
            advance(row.name)
    return [done.get(row.name, row) for row in rows]


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; elsewhere, where the work takes long, a line for each part."""
    if not sys.stderr.isatty():
        from lightning_ft.run.quiet import say

        yield (lambda name: say(f"{what}: {name}")) if what == "measuring" else (lambda name: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(name: str) -> None:
            bar.update(task, advance=1, description=f"{what}: {name}")

        yield advance
