"""The evaluations that are compared: read where they exist, made where they do not, and of the same rows."""

from __future__ import annotations

import contextlib
import gc
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.errors import DataError, UsageError
from lightning_ft.evaluation import RESULTS, Evaluation
from lightning_ft.scoring import as_given
from lightning_ft.types import Message, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lightning_ft.types import Conversation

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Side:
    """A model with its evaluation."""

    letter: str
    name: str
    evaluation: Evaluation
    folder: Path
    run: Path | None


@dataclass(frozen=True)
class Request:
    """How models are evaluated that have no evaluation yet."""

    data: Sequence[str]
    metrics: Sequence[str] | None
    task: Any
    max_rows: int | None
    options: Mapping[str, Any]
    """Further arguments of `lightning_ft.evaluate`."""


def check_models(names: Sequence[str], data: Sequence[str]) -> None:
    """Refuse what can be refused before anything runs.

    Raises:
        UsageError: fewer than two models, one of them twice, one that is none, or no data for one that has to be evaluated.
    """
    from lightning_ft.loading import locate

    if len(names) < 2:
        got = f"'{names[0]}' alone" if names else "none"
        raise UsageError(f"Expected --models to name at least two models, the baseline first; got {got}.")
    if len(names) > len(LETTERS):
        raise UsageError(f"Expected --models to name at most {len(LETTERS)} models, got {len(names)}; compare them in parts.")
    seen: dict[str, str] = {}
    for name in names:
        place = place_of(name)
        if place in seen:
            raise UsageError(f"Expected --models to name different models, got '{seen[place]}' and '{name}', which are one.")
        seen[place] = name
    missing = [name for name in names if not is_evaluation(name)]
    for name in missing:
        try:
            locate(name)
        except UsageError as error:
            raise UsageError(str(error).replace("--model ", "--models ")) from error
    if missing and not data:
        raise UsageError(f"Expected --data FILE for '{missing[0]}', which is no folder that `evaluate` wrote; got nothing.")


def check_read(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse options of evaluations where none is made.

    Raises:
        UsageError: every name is that of an evaluation, and an option has a value.
    """
    unread = next((name for name, value in given.items() if value not in (None, [])), None)
    if unread is not None and all(map(is_evaluation, names)):
        raise UsageError(
            f"Expected a model that is not evaluated yet with --{unread}, got evaluations alone, which have their rows and "
            "their answers; leave it out."
        )


def place_of(name: str) -> str:
    """The whole path of what a name stands for on this machine; else the name."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def is_evaluation(name: str) -> bool:
    """Whether a name is that of a folder that `evaluate` wrote."""
    return (Path(name).expanduser() / RESULTS).is_file()


def gather(
    names: Sequence[str], request: Request, output: Path, seen: Callable[[Side], None], *, blind: bool = False
) -> list[Side]:
    """A side per name, in order; the evaluations that exist are read first, so that what is wrong with them is known early.

    Args:
        names: Models, or folders of evaluations.
        request: How the models are evaluated.
        output: Where their evaluations are written, a folder for each.
        seen: Looks at each evaluation as soon as it is there, and may refuse it.
        blind: Say which model is at work by its letter only.

    Raises:
        UsageError: evaluations of different rows.
    """
    from lightning_ft.api import evaluate
    from lightning_ft.run.hardware import reset_peak_memory
    from lightning_ft.run.inherited import reads_of
    from lightning_ft.run.quiet import say

    sides: dict[str, Side] = {}

    def add(letter: str, name: str, folder: Path, run: Path | None) -> None:
        side = Side(letter, name, Evaluation.read(folder), folder, run)
        if not side.evaluation.rows:
            raise DataError(f"{folder}: expected at least one row in the evaluation, got none; evaluate the model again.")
        for other in sides.values():
            check_same_rows(other, side)
        seen(side)
        sides[letter] = side

    reads = {"task": request.task, **request.options}
    if request.task in (None, "auto") and request.data:
        models = [name for name in names if not is_evaluation(name)]
        found, said = reads_of(models, request.data, request.options.get("columns") or {})
        reads |= found  # for all models alike
        if said:
            say(f"task: {said}")
    named = list(zip(LETTERS, names, strict=False))
    for letter, name in sorted(named, key=lambda pair: not is_evaluation(pair[1])):
        given = Path(name).expanduser()
        if is_evaluation(name):
            add(letter, name, given, next((place for place in (given, *given.parents[:1]) if is_run(place)), None))
            continue
        say(f"{letter}: evaluating" if blind else f"{letter}: evaluating {name}")
        folder = own_folder(output, letter, name)
        gc.collect()  # the model before, so that its memory is not counted as this one's
        reset_peak_memory()
        evaluate(
            name, list(request.data), metrics=request.metrics, output=str(folder), max_rows=request.max_rows, **reads,
        )  # fmt: skip
        add(letter, name, folder, given if is_run(given) else None)
    return [sides[letter] for letter, _ in named]


@contextlib.contextmanager
def claimed(output: str | Path | None, stem: str) -> Iterator[Path]:
    """The folder of a command: `output`, or runs/<stem>_<n>, which is made at once, so that no other command takes it.

    It is gone again where nothing came into it.
    """
    from lightning_ft.run.folder import new_folder

    runs = Path("runs")
    given = None if output is None else Path(output).expanduser()
    before = {place for place in (runs, given) if place is not None and place.exists()}
    folder = new_folder(runs, stem) if given is None else given
    try:
        yield folder
    finally:
        for place in (folder, runs):
            if place not in before and place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def own_folder(output: Path, letter: str, name: str) -> Path:
    """Where a model's evaluation is written within the folder of a command."""
    return output / f"{letter.lower()}_{slug(name)}"


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run that logged its steps."""
    return (folder / layout.RECORD).is_file() and (folder / layout.LOG).is_file()


def slug(name: str) -> str:
    """A model's name as a part of a folder's."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-.")[:40] or "model"


def check_same_rows(one: Side, other: Side) -> None:
    """Refuse evaluations of different rows; the same rows under another file name are the same.

    Raises:
        UsageError: they differ; the message names the first rows that do.
    """
    ours, theirs = one.evaluation.rows, other.evaluation.rows
    advice = "evaluate all models on one file with one --max_rows and --seed."
    pair = f"{one.letter} ('{one.name}') and {other.letter} ('{other.name}')"
    if len(ours) != len(theirs):
        raise UsageError(f"Expected {pair} to be evaluated on the same rows, got {len(ours)} and {len(theirs)} rows; {advice}")
    for a, b in zip(ours, theirs, strict=True):
        if a.row != b.row or a.references != b.references or content(a.example) != content(b.example):
            if content(a.example) == content(b.example) and a.references == b.references:
                continue
            names = f"'{a.row}' and '{b.row}'" if a.row != b.row else f"two versions of '{a.row}'"
            raise UsageError(f"Expected {pair} to be evaluated on the same rows in the same order, got {names}; {advice}")


def content(example: Any) -> str:
    """What a row says, without what is only noted about it."""
    return json.dumps({key: value for key, value in asdict(example).items() if key != "meta"}, sort_keys=True, default=str)


def turns_asked(example: Any) -> tuple[Message, ...]:
    """The turns before the answer, as the row has them and no template has changed them; a raw text is the user's."""
    given: Conversation | Text = as_given(example)
    if isinstance(given, Text):
        return (Message("user", given.text),)
    turns = given.messages
    return turns[: next((i for i in reversed(range(len(turns))) if turns[i].role == "assistant"), len(turns))]


def prompt_of(example: Any) -> str:
    """What a model is asked, as a text: the same for every model."""
    turns = turns_asked(example)
    return turns[0].content if len(turns) == 1 else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
