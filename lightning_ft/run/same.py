"""Whether a run that goes on is still the same run: the options that it began with against those of now."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_ft.config import PLUGGABLE, describe
from lightning_ft.errors import UsageError
from lightning_ft.run.folder import NOT_OF_THE_RESULT, options_of, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning_ft.config import TrainingConfig
    from lightning_ft.loading import Location
    from lightning_ft.run.choices import Choices

COMPUTED_OTHERWISE = frozenset({
    "gradient_checkpointing", "activation_offload", "save_every", "save_behind", "devices", "tensor_parallel", "strategy",
})  # fmt: skip
"""Options of how a run is computed and kept. Losses stay the same but for rounding and for what dropout draws, which goes by
process."""
ANSWERS = frozenset({"metrics", "max_new_tokens"})
"""Options of what the verdict does with the trained model."""
OF_THE_DATA = frozenset({"data", "val_data", "test_data", "on_error", "max_lost"})
"""Options that may change as long as the rows that come out are the same, which `Resume.open` compares."""
OF_THE_TRAINER = frozenset({
    "callbacks", "logger", "plugins", "profiler", "num_nodes", "max_time", "enable_progress_bar", "enable_model_summary",
    "detect_anomaly", "default_root_dir",
})  # fmt: skip
"""Arguments of Lightning's Trainer that may change."""
MAY_CHANGE = (NOT_OF_THE_RESULT - {"output", "name"}) | COMPUTED_OTHERWISE | ANSWERS | OF_THE_DATA | {"trust_remote_code"}
"""Options that a resumed run takes as they are given now; every other one is the run's own."""
UNSAID = ("output", "name", "resume", "trust_remote_code")
"""Options that may differ without a word, and stay what they were in the run's `config.yaml`."""
BLOCK, BLOCKS = 4096, 64
"""Bytes of a piece of a weights' file that is looked at, and how many of them."""

Changes = dict[str, tuple[Any, Any]]
"""By option: its value then and now."""


def changed_options(
    run: Path, config: TrainingConfig, choices: Choices, location: Location, say: Callable[[str], None]
) -> dict[str, Any]:
    """What a run goes on with that it did not begin with, by option; each is said.

    Options that decide what comes out are the run's own. The others (`MAY_CHANGE`) are taken as they are now; so are the same
    model and files under another path, and the size of micro-batches where rows per step do not depend on it.

    Args:
        run: The run folder.
        config: The options of now.
        choices: What they name.
        location: Where their model lies.
        say: Prints a line.

    Raises:
        UsageError: options that would make it another run from here on; all of them in one sentence.
    """
    then, now = options_of(run), _plain(config, choices)
    differences: Changes = {}
    for name in now:
        if name in then:
            differences |= _differences(name, then[name], now[name], choices)
    refused = {
        name: values
        for name, values in differences.items()
        if not (_may_change(name, run, now) or _same_elsewhere(name, *values, run, location))
    }
    if refused:
        said = " and ".join(f"--{name} {_word(is_now)} (the run: {_word(was)})" for name, (was, is_now) in refused.items())
        raise UsageError(
            f"Expected the options that run '{run}' began with, got {said}; leave out what differs to go on, or start a new "
            f"run from its result with --model {run}."
        )
    taken = {name: values for name, values in differences.items() if name not in UNSAID}
    for name, (was, is_now) in taken.items():
        say(f"resume: --{name} {_word(is_now)} from here on (before: {_word(was)})")
    return {name: is_now for name, (_, is_now) in taken.items()}


def _plain(config: TrainingConfig, choices: Choices) -> dict[str, Any]:
    """Options as they come back from a `config.yaml`, without a task that the columns have still to decide."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(config.as_dict() | {"task": describe(choices.task)}))
    return {name: value for name, value in values.items() if name != "task" or value is not None}


def _differences(name: str, then: Any, now: Any, choices: Choices) -> Changes:
    """Values then and now by option, `objective.beta` for one of a plugin's; options that did not exist then are left out."""
    if then == now:
        return {}
    if name == "trainer":
        then, now = then or {}, now or {}
        return _by_key(name, {**dict.fromkeys(now), **then}, {**dict.fromkeys(then), **now})
    if name in PLUGGABLE and isinstance(then, dict) and isinstance(now, dict) and then.get("name") == now.get("name"):
        if name == "optimizer":  # of which only what was given is noted
            usual = inspect.signature(choices.optimizer).parameters.values()
            defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in usual}
            then, now = ({**{key: defaults.get(key) for key in (*then, *now)}, **given} for given in (then, now))
        return _by_key(name, then, {key: now[key] for key in now if key in then})
    if name in PLUGGABLE:
        then, now = (value.get("name") if isinstance(value, dict) else value for value in (then, now))  # another class
    return {name: (then, now)}


def _by_key(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    return {f"{name}.{key}": (then[key], now[key]) for key in now if then[key] != now[key]}


def _may_change(name: str, run: Path, now: Mapping[str, Any]) -> bool:
    """Whether an option may be another one than it was, whatever it is now."""
    if name == "batch_tokens":
        return now["batch_size"] is not None
    if name in ("output", "name"):  # `auto` is given the folder of a new run, for where there is none to go on with
        where = Path(now["output"]) if name == "output" and now["output"] else run.parent / str(now["name"])
        return now["resume"] == "auto" or now[name] is None or where.resolve() == run.resolve()
    if name == "packing":  # what it came to then, typed where a check would decide otherwise now
        return str(now[name]) == ("on" if record_of(run).get("packed") else "off")
    kind, _, argument = name.partition(".")
    return argument in OF_THE_TRAINER if kind == "trainer" else kind in MAY_CHANGE


def _same_elsewhere(name: str, then: object, now: object, run: Path, location: Location) -> bool:
    """Whether two values are two paths to the same thing: to one place, or to what was moved."""
    if not (isinstance(then, str) and isinstance(now, str) and Path(now).exists()):
        return False
    if name not in ("model", "template") and "/" not in then:
        return False
    if Path(then).exists():
        return Path(then).resolve() == Path(now).resolve()
    if name == "model":
        known = record_of(run).get("model")
        return known is not None and known == fingerprint(location)
    return True  # an option's file: the texts that come out are compared, and an adapter beneath is by who loads it


def fingerprint(location: Location) -> str | None:
    """A hash by which a model is known again: config, and pieces of the weights. None where it lies on the hub."""
    found = hashlib.sha256()
    for folder in (Path(location.base), *([location.adapter] if location.adapter else [])):
        if not folder.is_dir():
            return None
        for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
            size = path.stat().st_size if path.is_file() else 0
            found.update(f"{path.name} {size}\n".encode())
            if size:
                with path.open("rb") as file:
                    for n in range(BLOCKS if size > BLOCK * BLOCKS else 1):
                        file.seek(n * (size // BLOCKS) if size > BLOCK * BLOCKS else 0)
                        found.update(file.read(BLOCK if size > BLOCK * BLOCKS else size))
    return found.hexdigest()


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
