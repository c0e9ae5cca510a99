"""Where a run goes on: which folder, which checkpoint, and whether it would still be the same run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_ft import checkpoint
from lightning_ft.config import PLUGGABLE, describe
from lightning_ft.errors import UsageError
from lightning_ft.run import folder
from lightning_ft.run.strategies import kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning_ft.config import TrainingConfig
    from lightning_ft.run.folder import RunFolder
    from lightning_ft.task import Task

COMPUTED_OTHERWISE = frozenset({
    "gradient_checkpointing", "activation_offload", "save_every", "save_behind", "devices", "tensor_parallel", "strategy",
})  # fmt: skip
"""Options of how a run is computed and kept; losses stay the same but for rounding."""
ANSWERS = frozenset({"metrics", "max_new_tokens"})
"""Options of what the verdict does with the trained model."""
OF_THE_DATA = frozenset({"data", "val_data", "test_data", "on_error", "max_lost"})
"""Options that may change as long as the rows that come out are the same, which `Resume.open` compares."""
MAY_CHANGE = (
    folder.NOT_OF_THE_RESULT | COMPUTED_OTHERWISE | ANSWERS | OF_THE_DATA | {"trainer", "trust_remote_code"}
) - {"output", "name"}  # fmt: skip
"""Options that a resumed run takes as they are given now; every other one is the run's own."""


@dataclass(frozen=True)
class Resume:
    """An unfinished run and its newest whole checkpoint."""

    run: Path
    checkpoint: Path | None
    """None: the run stopped before its first checkpoint, so it starts again in the same folder."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Options that this process was given otherwise than the one before it, as they are now; see `keep`."""

    @property
    def world_size(self) -> int | None:
        """Data-parallel ranks for which the run's steps were made; None: it has not said."""
        return folder.noted(self.run).get("world_size")

    def keep(self, config: TrainingConfig, task: Task | None, say: Callable[[str], None]) -> None:
        """Compare the options with those that the run began with.

        Options that decide what comes out are the run's own. The others (`MAY_CHANGE`) are taken as they are now, and said;
        so are a base model or a file that lies elsewhere now, and the size of micro-batches where rows per step do not
        depend on it.

        Raises:
            UsageError: an option that would make it another run from here on; all of them in one sentence.
        """
        then, now = folder.options_of(self.run), _plain(config, task)
        different = [_differences(name, then[name], now[name]) for name in now if name in then]
        others = {name: values for part in different for name, values in part.items()}
        refused = {name: values for name, values in others.items() if not (self._may_change(name, now) or _moved(*values))}
        if refused:
            said = " and ".join(f"--{name} {_word(is_now)} (the run: {_word(was)})" for name, (was, is_now) in refused.items())
            raise UsageError(
                f"Expected the options that run '{self.run}' began with, got {said}; leave out what differs to go on, or start "
                f"a new run from its result with --model {self.run}."
            )
        for name, (was, is_now) in others.items():
            if name not in ("output", "name", "resume", "trust_remote_code"):
                self.changed[name] = is_now
                say(f"resume: --{name} {_word(is_now)} from here on (before: {_word(was)})")

    def _may_change(self, name: str, now: Mapping[str, Any]) -> bool:
        if name == "batch_tokens":
            return now["batch_size"] is not None
        if name in ("output", "name"):  # `auto` is given the folder of a new run, for where there is none to go on with
            if now["resume"] == "auto" or now[name] is None:
                return True
            where = Path(now["output"]).resolve() if name == "output" and now["output"] else self.run.parent / str(now["name"])
            return where.resolve() == self.run.resolve()
        return name.partition(".")[0] in MAY_CHANGE

    def open(self, config: TrainingConfig, identity: str, total_steps: int) -> RunFolder:
        """The run's folder, locked, if it is still the same run.

        Raises:
            UsageError: data or number of steps are not those of the run: the rows of the steps to come would be others, and
                the result would be neither run's. Or its checkpoints are of another kind than the strategy reads.
        """
        run = folder.reopen(self.run)
        then = run.record
        for what, before, now, mend in (
            ("data and tokens", (then.get("data") or {}).get("identity"), identity, "restore the file"),
            ("number of steps", then.get("total_steps"), total_steps, "leave epochs and batch sizes as they were"),
            ("kind of strategy", kind(then.get("strategy")), kind(config.strategy), f"type --strategy {then.get('strategy')}"),
        ):
            if before is not None and before != now:
                run.release()
                raise UsageError(
                    f"Expected the same {what} as run '{self.run}' had ({_short(before)}), got {_short(now)}; {mend}, or start "
                    f"a new run from its result with --model {self.run}."
                )
        run.record.pop("error", None)  # what ended the process before this one
        if self.changed:
            run.write_config(config)
            before = run.record.get("changed_options", [])
            run.record["changed_options"] = [*before, {"from": self.checkpoint and self.checkpoint.name, **self.changed}]
        run.update(status="running", resumed_from=self.checkpoint.name if self.checkpoint else None)
        return run


def _short(value: object) -> str:
    return str(value)[:12]


def _moved(then: object, now: object) -> bool:
    """Whether two values are paths to one place, or only the second one is there: who reads it checks what it holds."""
    if not (isinstance(then, str) and isinstance(now, str)):
        return False
    before, place = Path(then), Path(now)
    return place.exists() and (not before.exists() or before.resolve() == place.resolve())


def _word(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(config: TrainingConfig, task: Task | None) -> dict[str, Any]:
    """Options as they come back from a `config.yaml`, without a task that the columns have still to decide."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(config.as_dict() | {"task": describe(task)}))
    return {name: value for name, value in values.items() if name != "task" or value is not None}


def _differences(name: str, then: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Values then and now by option, `objective.beta` for one of a plugin's; options that did not exist then are left out."""
    if then == now:
        return {}
    if name in PLUGGABLE and isinstance(then, dict) and isinstance(now, dict) and then.get("name") == now.get("name"):
        return {f"{name}.{key}": (then[key], now[key]) for key in now if key in then and then[key] != now[key]}
    if name in PLUGGABLE:
        then, now = (value.get("name") if isinstance(value, dict) else value for value in (then, now))  # another class
    return {name: (then, now)}


def run_of(name: str) -> tuple[Path, Path | None]:
    """The run folder that `--resume NAME` means, and the checkpoint where NAME is one.

    Raises:
        UsageError: NAME is neither.
    """
    path = Path(name)
    if (path / "run.json").is_file():
        return path, None
    if checkpoint.NAME.fullmatch(path.name) and (path.parent.parent / "run.json").is_file():
        return path.parent.parent, path
    raise UsageError(f"Expected --resume to be auto, a run folder or a checkpoint folder; '{name}' is none of them.")


def find_resume(config: TrainingConfig, identity: str, say: Callable[[str], None]) -> Resume | None:
    """The run to go on with, or None for a fresh one.

    `auto` takes the newest unfinished run with the same options beside `--output`; a broken checkpoint is passed over for
    the newest whole one before it, and said. Where all are broken, `auto` begins again in the same folder (a job that is
    restarted has to get on); a run that somebody named is refused instead, as its steps cannot be what was wanted.

    Raises:
        UsageError: the named run has finished, is none, or has checkpoints of which none is whole.
    """
    if config.resume is None:
        return None
    named: Path | None = None
    if config.resume == "auto":
        parent = Path(config.output).parent if config.output else Path("runs")
        run = folder.unfinished(parent, identity)
        if run is None:
            say("resume: no unfinished run with these options, starting a new one")
            return None
    else:
        run, named = run_of(config.resume)
    if folder.status(run) == "finished":
        raise UsageError(
            f"Run '{run}' has finished; to train on from its result type --model {run}, to use it --model {run} elsewhere."
        )
    last = None if named is None else checkpoint.step_of(named)
    found = checkpoint.newest(run, last=last, say=lambda line: say(f"resume: {line}"))
    if found is None and config.resume != "auto" and checkpoint.checkpoints(run):
        where = f"'{run}'" if named is None else f"'{named}' or before it"
        raise UsageError(
            f"Expected a whole checkpoint in {where}, found broken ones only; name another with --resume, or start a new run."
        )
    say(f"resume: {run} from " + (found.name if found else "the beginning (no whole checkpoint)"))
    return Resume(run, found)
