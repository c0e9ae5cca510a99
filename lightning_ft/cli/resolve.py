"""Phase one: from argv to checked values, with names resolved by the registry and without torch or Lightning.

Only optimisers and metrics are torch classes; `check_torch_names` looks them up when everything else was found right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.classpaths import check_class_paths
from lightning_ft.cli.flags import Arguments, Given, Layer, file_layer, parse_flags
from lightning_ft.cli.options import EVERYDAY_OF_OPTIMIZERS, Option, options_of
from lightning_ft.cli.values import MismatchError, read_yaml_text
from lightning_ft.cli.yamlfile import find_config, read_config
from lightning_ft.config import PLUGGABLE, TrainingConfig
from lightning_ft.errors import LightningFTError, UsageError, did_you_mean
from lightning_ft.registry import Entry, registry
from lightning_ft.run.folder import run_around

if TYPE_CHECKING:
    from lightning_ft.cli.yamlfile import ConfigFile

NOT_INHERITED = (
    "model", "output", "name", "resume", "trainer", "trust_remote_code", "from_scratch", "devices", "strategy",
    "tensor_parallel", "workers",
)  # fmt: skip
"""What `validate`, `test` and `predict` do not take over from the config of the run that they look at."""
READ_BY_STAGES = frozenset({
    "model", "data", "val_data", "test_data", "split", "holdout_tasks", "columns", "task", "template", "max_length", "metrics",
    "max_new_tokens", "seed", "precision", "revision", "trust_remote_code", "output", "devices", "strategy", "tensor_parallel",
    "trainer", "on_error", "max_lost", "objective", "stream", "max_steps",
})  # fmt: skip
"""Options that `validate`, `test` and `predict` read; a config file may have others, which are for `fit`."""
OF_ITS_DATA = ("val_data", "test_data", "holdout_tasks", "mix", "mix_temperature", "stream")
"""What they take over for the run's own data only."""


@dataclass
class Request:
    """What the user asked for, checked."""

    values: dict[str, Any]
    """Options of `TrainingConfig` by name, typed; the pluggable ones as `{name, option: value}`."""
    given: frozenset[str]
    """Names that the user set, in flags or files."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further arguments of Lightning's Trainer, not yet checked."""
    switches: dict[str, str] = field(default_factory=dict)
    classes: dict[str, Entry] = field(default_factory=dict)
    """The chosen class of each pluggable kind that could be looked up without torch."""

    def config(self, trainer: Mapping[str, Any] | None = None) -> TrainingConfig:
        """The checked config, with the Trainer's arguments as phase two left them."""
        return TrainingConfig.from_dict({**self.values, "trainer": dict(self.trainer if trainer is None else trainer)})


def parse(argv: Sequence[str]) -> Arguments:
    """The flags of a `fit`-like command."""
    return parse_flags(argv, options_of(TrainingConfig))


def resolve(arguments: Arguments, *, stage: str = "fit", complete: bool = True) -> Request:
    """Merge presets, files and flags (later wins), resolve names, check every value.

    Args:
        arguments: what `parse` returned.
        stage: `fit`, or `validate`, `test`, `predict`, which start from the config of the run that `model` names.
        complete: whether the model and the data must be known (not for `--help`).

    Raises:
        UsageError: the first thing that is wrong, in one sentence.
    """
    options = options_of(TrainingConfig)
    layers = [*(_checked_layer(find_config(name), options) for name in arguments.configs), arguments.layer]
    for section, values in arguments.layer.sections.items():
        check_class_paths({section: {k: _leaves(v.value) for k, v in values.items()}}, "the flags")
    if stage != "fit" and complete:
        _check_read(stage, arguments.layer)
    layers.insert(0, _run_layer(stage, layers, options))
    _check_remote_code(layers)
    request = Request({}, frozenset(), switches=arguments.switches)
    merged: dict[str, Given] = {}
    for layer in layers:
        merged |= layer.values
    request.values = {name: given.typed(options[name].type) for name, given in merged.items()}
    for kind in PLUGGABLE:
        chosen = _merge_section(kind, layers)
        if chosen is not None:
            request.values[kind] = _pluggable(kind, chosen, request)
    for layer in layers:
        request.trainer |= {k: _typed_trainer(v) for k, v in layer.sections.get("trainer", {}).items()}
        columns = {name: given.typed(str) for name, given in layer.sections.get("columns", {}).items()}
        if columns:
            request.values["columns"] = {**request.values.get("columns", {}), **columns}
    request.given = frozenset(request.values) | ({"trainer"} if request.trainer else frozenset())
    if complete:
        request.config()
    return request


def _check_read(stage: str, flags: Layer) -> None:
    unread = next((name for name in (*flags.values, *flags.sections) if name not in READ_BY_STAGES), None)
    if unread is not None:
        raise UsageError(f"Expected flags that `{stage}` reads, got --{unread}, which is for `fit` alone; leave it out.")


def _check_remote_code(layers: Sequence[Layer]) -> None:
    for layer in layers:
        given = layer.values.get("trust_remote_code")
        if given is not None and not given.text:
            layer.values.pop("trust_remote_code")
            if given.typed(bool) and "trust_remote_code" not in layers[-1].values:
                raise given.error("to be false in a config file; to run the model repository's code, type --trust_remote_code.")


def _checked_layer(config: ConfigFile, options: Mapping[str, Option]) -> Layer:
    check_class_paths(config.values, config.path)
    return file_layer(config, options)


def _run_layer(stage: str, layers: Sequence[Layer], options: Mapping[str, Option]) -> Layer:
    """The config of the run that is resumed or looked at; empty where there is none.

    `resume` names it, so that `fit --resume RUN` needs nothing else; for the other stages `model` does, so that split,
    template and task are those of the training.
    """
    key = "resume" if stage == "fit" else "model"
    name = next((layer.values[key].value for layer in reversed(layers) if key in layer.values), None)
    if not name or (key, name) == ("resume", "auto"):
        return Layer()
    run = run_around(str(name))
    if run is None:
        return Layer()
    layer = _checked_layer(read_config(run / layout.CONFIG), options)
    given = next((later.values["data"] for later in reversed(layers) if "data" in later.values), None)
    other = given is not None and _places(given, options) != _places(layer.values.get("data"), options)
    for dropped in (*NOT_INHERITED, *(OF_ITS_DATA if other else ())) if stage != "fit" else ():
        layer.values.pop(dropped, None)
        layer.sections.pop(dropped, None)
    return layer


def _places(given: Given | None, options: Mapping[str, Option]) -> set[str]:
    """Where the data lie that an option names."""
    return set() if given is None else {os.path.abspath(name) for name in given.typed(options["data"].type)}


def _merge_section(kind: str, layers: Sequence[Layer]) -> dict[str, Given] | None:
    """The name and options of one kind; options given for another class do not carry over."""
    merged: dict[str, Given] | None = None
    for layer in layers:
        section = layer.sections.get(kind)
        if section is None:
            continue
        if merged is not None and "name" in section and (_name(merged) or _usual(kind)) != _name(section):
            merged = None
        merged = {**(merged or {}), **section}
    return merged


def _name(section: Mapping[str, Given] | None) -> str | None:
    given = (section or {}).get("name")
    return str(given.value).lower() if given is not None and given.value is not None else None


def _usual(kind: str) -> str | None:
    """The name of the class that options belong to where none is named, in lower case; None: of a task, by the data."""
    if kind == "optimizer":
        return "adamw"
    try:
        return None if kind == "task" else registry()[kind].default().name.lower()
    except LightningFTError:  # several or none: it is told where one is needed
        return None


def _pluggable(kind: str, section: dict[str, Given], request: Request) -> Any:
    """A name (or None, `auto`) alone where there are no options, else `{name, option: value}`."""
    section = dict(section)
    named = section.pop("name", None)
    if named is not None and named.value is not None and not isinstance(named.value, str):
        raise named.error(f"to be a name; got '{named.value}'.")
    name = named.value if named is not None else None
    if kind == "task" and (name or "auto").lower() == "auto":
        if section:
            first = next(iter(section))
            raise section[first].error(
                f"with the task that it belongs to, as --task NAME; got task auto, which has no '{first}'."
            )
        return "auto"
    if kind == "optimizer":
        for key in EVERYDAY_OF_OPTIMIZERS:
            if key in section:
                raise section[key].error(f"by its everyday name, --{EVERYDAY_OF_OPTIMIZERS[key]}.")
        # Typed by `check_torch_names`: the classes need torch.
        return {"name": name or "AdamW", **section}
    if name is None and not section:
        return None
    entry = _entry(kind, named) if name is not None and named is not None else registry()[kind].default()
    request.classes[kind] = entry
    typed = _typed_options(kind, entry, section)
    _build(kind, entry, typed, section, named)
    return {"name": entry.name, **typed}


def _entry(kind: str, named: Given) -> Entry:
    try:
        return registry()[kind][named.value]
    except UsageError as error:
        if named.text or not str(error).startswith("Expected"):
            raise
        raise UsageError(f"{named.place}: e{str(error)[1:]}") from None


def _typed_options(kind: str, entry: Entry, section: Mapping[str, Given]) -> dict[str, Any]:
    options = options_of(entry.cls)
    typed = {}
    for key, given in section.items():
        if key not in options:
            known = ", ".join(options) or "none"
            hint = did_you_mean(key, options)
            raise given.error(f"to be an option of {kind} {entry.name} ({known}); got '{key}'.{hint}")
        typed[key] = given.typed(options[key].type)
    return typed


def _build(kind: str, entry: Entry, typed: Mapping[str, Any], section: Mapping[str, Given], named: Given | None) -> None:
    """Make the instance once, for the checks of its `__post_init__`."""
    needed = [o.name for o in options_of(entry.cls).values() if o.default is MISSING and o.name not in typed]
    if needed:
        raise UsageError(f"Expected --{kind}.{needed[0]} with {kind} {entry.name}; got nothing.")
    try:
        entry.cls(**typed)
    except LightningFTError:
        raise
    except (ValueError, TypeError) as error:
        places = ", ".join(dict.fromkeys(g.place for g in section.values())) or (named.place if named else f"--{kind}")
        raise UsageError(f"{places}: {kind} {entry.name}: {error}") from None


def check_torch_names(request: Request) -> None:
    """Look up metrics and the optimiser and type its options; this imports torch.

    Raises:
        UsageError: an unknown name, or an option that the optimiser does not have.
    """
    for name in request.values.get("metrics") or ():
        registry().metrics[name]
    chosen = request.values.get("optimizer")
    if isinstance(chosen, dict):
        section = {k: v for k, v in chosen.items() if isinstance(v, Given)}
        entry = registry().optimizers[chosen["name"]]
        typed = _typed_options("optimizer", entry, section)
        request.classes["optimizer"] = entry
        request.values["optimizer"] = {"name": entry.name, **typed}


def _leaves(value: Any) -> Any:
    """A flag's value with every text in it read as YAML."""
    if isinstance(value, Mapping):
        return {key: _leaves(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_leaves(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return read_yaml_text(value)
    except MismatchError:
        return value


def _typed_trainer(given: Given) -> Any:
    return _leaves(given.value) if given.text else given.value
