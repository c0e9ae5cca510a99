"""`lightning-ft plan`: which methods fit, how long they take, and which one to take, before anything trains."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lightning_ft.atomic import write_text
from lightning_ft.cli.early import look
from lightning_ft.cli.parser import STDOUT, CommandParser, add_json, check_json, command
from lightning_ft.cli.resolve import Request, check_torch_names, parse, resolve
from lightning_ft.cli.startup import uncollected
from lightning_ft.errors import UsageError
from lightning_ft_plan.machine import Device, default_device, machine_memory, parse_memory
from lightning_ft_plan.rules import Goal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_ft_plan.forecast import Row
    from lightning_ft_plan.planning import Plan, Planning

PURPOSE = """Every installed method with its trainable parameters, the memory that a run would take by part, its time, and
whether that fits; then a recommendation. No weights are loaded: a folder with config.json and a tokenizer is enough."""
EXAMPLE = """All options of `lightning-ft fit --help` are understood, too: --batch_tokens, --max_length, --method.rank ...

example: lightning-ft plan --model PATH_OR_HUB_ID --data FILE --memory 24GB --device gpu"""


def parser() -> CommandParser:
    """This command's own flags; all others are `fit`'s."""
    made = command("plan", PURPOSE, EXAMPLE)
    made.usage = "lightning-ft plan MODEL --data FILE [--memory 24GB] [--OPTION VALUE ...]"
    made.add_argument("--memory", metavar="SIZE", help="what there is, as 24GB or 24GiB (default: the machine's or its GPU's)")
    made.add_argument("--device", choices=get_args(Device), help="default: gpu where there is one; another needs --memory")
    made.add_argument(
        "--goal", choices=get_args(Goal), default=get_args(Goal)[0],
        help="one_task (default), several_tasks (related, on one base), domain_shift (a slight one), new_task (another one)",
    )  # fmt: skip
    made.add_argument(
        "--execute", action="store_true", help="run the preflight of each method that should fit, and show what it measured"
    )
    add_json(made, "the plan")
    return made


def main(argv: Sequence[str]) -> int:
    """Plan and print."""
    own, rest = parser().parse_known_args(list(argv))
    memory = None if own.memory is None else parse_memory(own.memory)
    check_json(own.json)
    with uncollected():
        request = resolve(parse(rest))
        config = request.config()
        look(config.model, config.data)
        check_torch_names(request)
        device: Device = own.device or default_device()
        plan = make(request, device, machine_memory(device) if memory is None else memory, own.goal, execute=own.execute)
    if own.json == STDOUT:
        print(plan_json(plan))
        return 0
    from lightning_ft_plan.terminal import lines

    print("\n".join(lines(plan)))
    if own.json:
        write_text(Path(own.json), plan_json(plan) + "\n")
        print(f"Plan: {own.json}")
    return 0


def plan_json(plan: Plan) -> str:
    """The plan as a JSON object."""
    return json.dumps(plan.as_dict(), indent=1, ensure_ascii=False)


def make(request: Request, device: Device, memory: int, goal: Goal, *, execute: bool) -> Plan:
    """The plan of a request."""
    from lightning_ft.run.quiet import say
    from lightning_ft_plan.machine import Target
    from lightning_ft_plan.planning import Planning

    config = request.config()
    if config.resume not in (None, "auto"):  # the latter has something behind it only where such a run was begun
        raise UsageError(f"Expected plan without --resume, which has its plan behind it; got {config.resume}.")
    planning = Planning(request, Target(device, memory, config.precision, config.master_weights), say)
    total = len(planning.methods()) + 1
    # What is here stays; only what a rehearsal leaves is looked through. It stays so to the end, as Python's own look at
    # everything when it ends would take two seconds.
    gc.freeze()
    with progress("planning", total) as advance:
        rows = planning.rows(advance)
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
