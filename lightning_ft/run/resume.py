"""Where a run goes on: which folder, which checkpoint, and whether it would still be the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import checkpoint, layout
from lightning_ft.errors import UsageError
from lightning_ft.run import folder
from lightning_ft.run.same import UNSAID
from lightning_ft.run.strategies import kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning_ft.config import TrainingConfig
    from lightning_ft.run.folder import RunFolder


@dataclass(frozen=True)
class Facts:
    """What a run that goes on must have in common with what it was."""

    identity: str
    """Of the data, as `Prepared` has it."""
    total_steps: int
    """Of the whole run."""
    strategy: str
    packed: bool
    """Whether documents share rows: their order is another one then."""
    model: str | None
    """Its fingerprint; None where that is not known."""


@dataclass(frozen=True)
class Resume:
    """An unfinished run and its newest whole checkpoint."""

    run: Path
    checkpoint: Path | None
    """None: the run stopped before its first checkpoint, so it starts again in the same folder."""

    @property
    def world_size(self) -> int | None:
        """Data-parallel ranks for which the run's steps were made; None: it has not said."""
        return folder.record_of(self.run).get("world_size")

    def open(self, config: TrainingConfig, facts: Facts, changed: Mapping[str, Any]) -> RunFolder:
        """The run's folder, locked, if it is still the same run.

        Args:
            config: The options of now.
            facts: What is known of it now.
            changed: Options of `config` that the run did not begin with, as `changed_options` has found them.

        Raises:
            UsageError: data, number of steps or packing are not those of the run: the rows of the steps to come would be
                others, and the result would be neither run's. Or its model is another one now, or its checkpoints are of
                another kind than the strategy reads.
        """
        run = folder.reopen(self.run)
        then = run.record
        packing = "on" if then.get("packed") else "off"
        for what, before, now, mend in (
            ("model", then.get("model"), facts.model, "restore it"),
            ("data and tokens", (then.get("data") or {}).get("identity"), facts.identity, "restore the file"),
            ("number of steps", then.get("total_steps"), facts.total_steps, "leave epochs and batch sizes as they were"),
            ("packing", then.get("packed"), facts.packed, f"type --packing {packing}"),
            ("kind of strategy", kind(then.get("strategy")), kind(facts.strategy), f"type --strategy {then.get('strategy')}"),
        ):
            if before is not None and now is not None and before != now:
                run.release()
                raise UsageError(
                    f"Expected the same {what} as run '{self.run}' had ({_short(before)}), got {_short(now)}; {mend}, or start "
                    f"a new run from its result with --model {self.run}."
                )
        run.record.pop("error", None)  # what ended the process before this one
        if changed:
            own = folder.options_of(self.run)
            run.write_config(config, {key: own.get(key) for key in UNSAID if key in own})
            earlier = run.record.get("changed_options", [])
            run.record["changed_options"] = [*earlier, {"from": self.checkpoint and self.checkpoint.name, **changed}]
            run.record["config_hashes"] = [*run.record.get("config_hashes", []), folder.config_hash(config)]
        run.update(status="running", resumed_from=self.checkpoint.name if self.checkpoint else None)
        return run


def _short(value: object) -> str:
    return str(value)[:12]


def run_of(name: str) -> tuple[Path, Path | None]:
    """The run folder that `--resume NAME` means, and the checkpoint where NAME is one.

    Raises:
        UsageError: NAME is neither.
    """
    path = Path(name)
    if (path / layout.RECORD).is_file():
        return path, None
    if checkpoint.NAME.fullmatch(path.name) and (path.parent.parent / layout.RECORD).is_file():
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
