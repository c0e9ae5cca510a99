"""From argv and config files to layers of given values; nothing is typed or merged yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.values import MismatchError, coerce, is_bool, is_list, show
from lightning_ft.config import FILES, PLUGGABLE
from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft.run.trainer_words import ALIASES, VALUES

if TYPE_CHECKING:
    from lightning_ft.cli.options import Option
    from lightning_ft.cli.yamlfile import ConfigFile

MAPPINGS = {"trainer": "a mapping of Lightning's Trainer arguments", "columns": "names with columns, as {prompt: question}"}
"""Sections without a class, and what they hold."""
SECTIONS = (*PLUGGABLE, *MAPPINGS)
"""Options with options of their own: `--method.rank 64`, `--columns.prompt question`, `--trainer.max_time 1h`."""
SWITCHES = {"help": ("--help", "-h"), "print_config": ("--print_config",)}
FIRST = "the first argument"
"""The place of a model without its flag."""


@dataclass(frozen=True)
class Given:
    """A value as the user gave it, and where."""

    value: Any
    text: bool
    """Whether it comes from a flag, so that it still has to be read."""
    place: str
    """`--epochs` or `file.yaml:3`."""
    name: str
    """What the error calls it: `--epochs` or `epochs`."""

    def typed(self, annotation: Any) -> Any:
        """The value in the declared type.

        Raises:
            UsageError: it does not fit.
        """
        try:
            return coerce(self.value, annotation, text=self.text)
        except MismatchError as mismatch:
            raise self.error(f"to be {mismatch}; got {show(self.value)}.") from None

    def error(self, rest: str) -> UsageError:
        """`Expected --x <rest>`, or `file:line: expected x <rest>`."""
        return UsageError(f"Expected {self.name} {rest}" if self.text else f"{self.place}: expected {self.name} {rest}")


@dataclass
class Layer:
    """What one config file, or the flags together, give."""

    values: dict[str, Given] = field(default_factory=dict)
    """Plain options by name."""
    sections: dict[str, dict[str, Given]] = field(default_factory=dict)
    """Options of the chosen classes (`rank` under `method`, its name under `name`) and of the Trainer."""


@dataclass
class Arguments:
    """A parsed command line."""

    layer: Layer
    configs: list[str]
    switches: dict[str, str]
    """`help` (its word, as in `--help all`) and `print_config`, where given."""


def parse_flags(argv: Sequence[str], options: Mapping[str, Option]) -> Arguments:
    """Split argv into flags; `--a.b` goes into section a.

    Raises:
        UsageError: a flag that does not exist, or one without its value.
    """
    out = Arguments(Layer(), [], {})
    words = list(argv)
    while words:
        word = words.pop(0)
        if not _is_flag(word):
            if "model" in out.layer.values:
                given = out.layer.values["model"].value
                raise UsageError(f"Expected one model, got '{given}' and '{word}'; several files follow --data.")
            out.layer.values["model"] = Given(word, True, FIRST, "the model")
            continue
        flag, equals, value = word.partition("=")
        switch = next((name for name, spellings in SWITCHES.items() if flag in spellings), None)
        if switch:
            out.switches[switch] = words.pop(0) if words and not _is_flag(words[0]) and words[0] == "all" else value
        elif flag in ("--config", "-c"):
            out.configs += _words(flag, [value] if equals else None, words, many=False)
        else:
            _take(flag, [value] if equals else None, words, out.layer, options)
    normalise_trainer(out.layer, options)
    return out


def _is_flag(word: str) -> bool:
    return word.startswith("--") or (len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == "."))


def _take(flag: str, given: list[str] | None, words: list[str], layer: Layer, options: Mapping[str, Option]) -> None:
    """Store one flag with its values."""
    path = flag.removeprefix("--").replace("-", "_")
    name, _, rest = path.partition(".")
    if not flag.startswith("--") or name not in options or (rest and name not in SECTIONS):
        raise unknown_flag(flag, options)
    if rest:
        value = _words(flag, given, words, many=True, alone=True)
        _put(layer.sections.setdefault(name, {}), rest.split("."), value[0] if len(value) == 1 else value, flag)
        return
    option = options[name]
    many = is_list(option.type)
    value = _words(flag, given, words, many=many, alone=is_bool(option.type), kind=option.type)
    if many and name not in FILES:  # paths may hold commas
        value = [part for item in value for part in (item.split(",") if not item.startswith("[") else [item]) if part]
    if name in SECTIONS:
        text = value[0]
        layer.sections.setdefault(name, {}).update(_section(name, Given(text, True, flag, flag)))
    elif many:
        earlier = layer.values[name].value if name in layer.values else []
        layer.values[name] = Given([*earlier, *value], True, flag, flag)
    else:
        before = layer.values.get(name)
        if before is not None and before.place == FIRST:
            raise UsageError(f"Expected one model, got '{before.value}' and '{value[0]}'; give it once.")
        layer.values[name] = Given(value[0], True, flag, flag)


def _words(
    flag: str, given: list[str] | None, words: list[str], *, many: bool, alone: bool = False, kind: Any = Any
) -> list[str]:
    """The values of a flag: those after `=`, else the words up to the next flag; where it may stand alone, a word that fits."""
    if given is not None:
        return given
    taken: list[str] = []
    while words and not _is_flag(words[0]) and (many or not taken):
        if alone and not many and not _fits(words[0], kind):
            break
        taken.append(words.pop(0))
    if not taken and alone:
        return ["true"]
    if not taken:
        raise UsageError(f"Expected a value after {flag}; got nothing.")
    return taken


def _fits(word: str, kind: Any) -> bool:
    try:
        coerce(word, kind, text=True)
    except MismatchError:
        return False
    return True


def unknown_flag(flag: str, options: Mapping[str, Option]) -> UsageError:
    """The error for a flag that does not exist."""
    flags = [f"--{name}" for name in (*options, "config", "help", "print_config", "debug")]
    head, dot, _ = flag.partition(".")
    if dot and head in flags:
        return UsageError(f"Expected a flag of `lightning-ft fit --help`, got '{flag}': {head} has no options of its own.")
    hint = did_you_mean(head, flags)
    if not hint:
        longer = [name for name in flags if name.startswith(flag)]
        hint = f" Did you mean '{longer[0]}'?" if longer and len(flag) > 3 else ""
    return UsageError(f"Expected a flag of `lightning-ft fit --help`, got '{flag}'.{hint}")


def _put(section: dict[str, Given], path: list[str], value: Any, flag: str) -> None:
    """Store `--section.a.b value` as {a: {b: value}}; only the Trainer nests deeper than one name."""
    head, *rest = path
    if not rest:
        section[head] = Given(value, True, flag, flag)
        return
    before = section[head].value if head in section else {}
    tree: dict[str, Any] = before if isinstance(before, dict) else {"class_path": before}
    at = tree
    for key in rest[:-1]:
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise UsageError(f"Expected {flag} below a mapping; got {show(at)} as the value of '{key}'.")
    at[rest[-1]] = value
    section[head] = Given(tree, True, f"--{flag.partition('.')[0][2:]}.{head}", flag)


def file_layer(config: ConfigFile, options: Mapping[str, Option]) -> Layer:
    """The layer of a config file.

    Raises:
        UsageError: a key that does not exist, or `trust_remote_code`, which only a flag may set.
    """
    layer = Layer()
    for key, value in config.values.items():
        place = config.place(key)
        if key not in options:
            names = ", ".join(options) if len(options) < 12 else "the options of `lightning-ft fit --help`"
            raise UsageError(f"{place}: expected one of {names}; got '{key}'.{did_you_mean(key, options)}")
        given = Given(value, False, place, key)
        if key not in SECTIONS:
            layer.values[key] = given
            continue
        for name, item in _section(key, given).items():
            layer.sections.setdefault(key, {})[name] = Given(item.value, False, config.place(key, name), item.name)
    normalise_trainer(layer, options)
    return layer


def _section(name: str, given: Given) -> dict[str, Given]:
    """`full`, `{name: full, option: 32}` or null as {"name": ..., "option": ...}."""
    value = given.value
    if given.text and isinstance(value, str) and value.startswith("{"):
        value = given.typed(dict)
    if name in MAPPINGS:
        if not isinstance(value, Mapping):
            raise given.error(f"to be {MAPPINGS[name]}; got {show(value)}.")
        return {str(k): Given(v, given.text, given.place, _below(given, k)) for k, v in value.items()}
    if value is None or isinstance(value, str):
        none = given.text and isinstance(value, str) and value.lower() in ("none", "null")
        return {"name": Given(None if none else value, given.text, given.place, given.name)}
    if not isinstance(value, Mapping):
        raise given.error(f"to be a name or a mapping, as {{name: ..., option: ...}}; got {show(value)}.")
    # Values inside a mapping were read as YAML, so they are typed already.
    return {str(k): Given(v, False, given.place, given.name if k == "name" else _below(given, k)) for k, v in value.items()}


def _below(given: Given, key: Any) -> str:
    return f"{given.name}.{key}"


def normalise_trainer(layer: Layer, options: Mapping[str, Option]) -> None:
    """Move Lightning's words for everyday options to ours.

    Raises:
        UsageError: both were given, with different values.
    """
    trainer = layer.sections.get("trainer", {})
    for alias, name in ALIASES.items():
        if alias not in trainer or name not in options:
            continue
        given = trainer.pop(alias)
        value = given.value
        if name == "eval_every" and _is_share(value):
            raise given.error(f"to be a number of steps (--eval_every); got {show(value)}.")
        value = VALUES.get(name, {}).get(str(value), value)
        moved = Given(value, given.text, given.place, given.name)
        if value is None and name != "max_grad_norm":
            moved = Given(None, False, given.place, given.name)
        twin = layer.values.get(name)
        if twin is not None and twin.typed(options[name].type) != moved.typed(options[name].type):
            raise moved.error(
                f"and {twin.name} to agree, for they mean the same; got {show(given.value)} and {show(twin.value)}."
            )
        layer.values.setdefault(name, moved)
    if not trainer:
        layer.sections.pop("trainer", None)


def _is_share(value: Any) -> bool:
    """Whether Lightning would read an interval as a share of an epoch or a time."""
    return isinstance(value, float) or (isinstance(value, str) and not value.lstrip("-").isdigit())
