"""`fit --help`: the everyday options by group, and the options of the chosen classes; made from field docstrings."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.options import MISSING, Option, options_of
from lightning_ft.cli.resolve import READ_BY_STAGES
from lightning_ft.cli.values import describe
from lightning_ft.cli.yamlfile import presets
from lightning_ft.config import TrainingConfig
from lightning_ft.registry import KINDS, Entry, Registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.cli.resolve import Request

GROUPS: dict[str, tuple[str, ...]] = {
    "Model": ("model", "from_scratch", "template", "revision", "trust_remote_code"),
    "Data": (
        "data", "val_data", "test_data", "split", "holdout_tasks", "mix", "mix_temperature", "columns", "task", "max_length",
        "packing", "stream", "on_error", "max_lost",
    ),
    "What trains, and how": (
        "method", "objective", "optimizer", "learning_rate", "lr_scheduler", "warmup", "lr_cycles", "lr_decay",
        "lr_decay_shape", "lr_min", "weight_decay", "max_grad_norm", "label_smoothing", "neftune_noise_alpha", "dropout",
    ),
    "How long, and how much at once": ("epochs", "max_steps", "batch_size", "batch_tokens", "accumulate", "eval_batch_size"),
    "Checks and records": (
        "metrics", "eval_every", "save_every", "save_behind", "log_every", "keep_best", "monitor", "monitor_mode",
        "early_stopping", "early_stopping_threshold", "verdict_rows", "retention", "max_new_tokens", "preflight",
    ),
    "Machine": (
        "precision", "master_weights", "quantize", "double_quant", "compute_dtype", "strategy", "tensor_parallel",
        "rank_timeout", "devices", "workers", "gradient_checkpointing", "activation_offload", "compile", "trainer",
    ),
    "Run": ("name", "output", "resume", "seed"),
}  # fmt: skip
"""Every everyday option, once."""
USAGES = {
    "fit": "Fine-tune a model on data.",
    "validate": "Likelihood metrics of a run or a model on the validation split.",
    "test": "Likelihood metrics of a run or a model on the test split.",
    "predict": "Answer the test split of a run or of data into predictions.jsonl.",
}
LISTED = ("method", "task", "objective")
"""Kinds whose names can be listed without importing torch."""


def fit_help(stage: str, request: Request, registry: Registry, *, everything: bool = False) -> str:
    """The help of `fit`, `validate`, `test` or `predict`.

    Args:
        stage: the command.
        request: what was given beside `--help`; its method, task, objective and optimiser show their options.
        registry: everything installed.
        everything: also list optimisers, metrics and Lightning's own arguments, for which torch is imported.
    """
    options = options_of(TrainingConfig)
    lines = [f"Usage: lightning-ft {stage} MODEL --data FILE [--OPTION VALUE ...]", "", USAGES[stage]]
    if stage != "fit":
        lines.append("MODEL may be a run folder: data, split, task and template are then those of the run.")
    lines += ["", "--config NAME|FILE may be repeated; later files win, flags win over files. --print_config shows the result."]
    lines.append(f"Presets: {', '.join(presets()) or 'none'}")
    for group, names in GROUPS.items():
        read = [name for name in names if stage == "fit" or name in READ_BY_STAGES]
        lines += ["", f"{group}:"] if read else []
        for name in read:
            lines += _option(options[name], f"--{name}")
    kinds = KINDS if everything else LISTED
    lines += ["", "Installed:"]
    for kind in kinds:
        lines += _wrap(f"{kind}s:", ", ".join(_names(registry[kind])))
    for kind in KINDS:
        entry = _chosen(kind, request, registry)
        if entry is not None and (stage == "fit" or kind in READ_BY_STAGES):
            lines += _class_help(kind, entry)
    broken = [info for info in registry.plugins if info.error]
    if broken:
        lines += ["", "Broken plugins (fit will refuse to start):", *(f"  {info.error}" for info in broken)]
    if everything:
        from lightning_ft.cli.lightning import trainer_help

        lines += ["", trainer_help().rstrip()]
    else:
        lines += ["", "--help all adds metrics, optimisers and the arguments of Lightning's Trainer (--trainer.ARGUMENT)."]
    return "\n".join(lines)


def _names(table: Mapping[str, Entry]) -> list[str]:
    return [f"{entry.name}" for entry in table.values()]


def _chosen(kind: str, request: Request, registry: Registry) -> Entry | None:
    if kind in request.classes:
        return request.classes[kind]
    if kind in ("method", "objective"):
        return registry[kind].default()
    return None


def _class_help(kind: str, entry: Entry) -> list[str]:
    said = " ".join((entry.cls.__doc__ or "").strip().split("\n\n")[0].split())
    lines = ["", f"Options of {kind} {entry.name} ({entry.plugin}{' ' + entry.version if entry.version else ''}): {said}"]
    options = options_of(entry.cls)
    if not options:
        return [*lines, "  none"]
    for option in options.values():
        lines += _option(option, f"--{kind}.{option.name}")
    return lines


def _option(option: Option, flag: str) -> list[str]:
    """One option: flag, type, docstring, default."""
    kind = "" if option.type is Any else describe(option.type)
    extra = [kind] if kind else []
    if option.default is MISSING:
        extra.append("required")
    elif option.default not in (None, {}, ()):
        extra.append(f"default: {_plain(option.default)}")
    text = f"{option.help} ({'; '.join(extra)})" if extra else option.help
    return _wrap(flag, text)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (
        f"{value:g}"
        if isinstance(value, float)
        else ",".join(map(str, value))
        if isinstance(value, (list, tuple))
        else str(value)
    )


def _wrap(head: str, text: str) -> list[str]:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = textwrap.wrap(text, max(width - 28, 40), break_long_words=False, break_on_hyphens=False) or [""]
    first = f"  {head:<25} {lines[0]}" if len(head) <= 25 else f"  {head}\n{' ' * 28}{lines[0]}"
    return [first, *(" " * 28 + line for line in lines[1:])]
