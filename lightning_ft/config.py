"""`TrainingConfig`: the everyday options, one name each in flags, YAML, presets, search spaces and Python."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_ft.checked import check_choice, check_number, check_type
from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft.monitor import Mode  # noqa: TC001  # types of options are read when flags are made
from lightning_ft.quantization import ComputeType, Format, wanted

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Master = Literal["fp32", "split", "none"]
OnError = Literal["fail", "skip"]
Packing = Literal["auto", "on", "off"]
Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "inverse_sqrt", "wsd"]
DecayShape = Literal["linear", "cosine", "1-sqrt"]
POSITIVE = (
    "tensor_parallel", "rank_timeout", "epochs", "accumulate", "log_every", "max_new_tokens", "batch_size", "batch_tokens",
    "max_steps", "max_length",
    "learning_rate", "eval_every", "early_stopping", "mix_temperature", "stream", "eval_batch_size", "lr_cycles", "lr_decay",
)  # fmt: skip
NOT_NEGATIVE = (
    "warmup", "weight_decay", "max_grad_norm", "save_every", "keep_best", "workers", "max_lost", "verdict_rows", "seed",
    "early_stopping_threshold", "neftune_noise_alpha", "label_smoothing", "dropout", "lr_min",
)  # fmt: skip
SHARES = ("label_smoothing", "dropout", "lr_min")
"""Options that stay below 1."""
READ_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "lr_cycles": ("lr_scheduler", ("cosine_with_restarts",)),
    "lr_decay": ("lr_scheduler", ("wsd",)),
    "lr_decay_shape": ("lr_scheduler", ("wsd",)),
    "lr_min": ("lr_scheduler", ("linear", "cosine", "cosine_with_restarts", "wsd")),
}
"""Options that only some values of another option read."""
NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")
"""Powers of ten that YAML 1.1 takes for texts."""
OF_PYTHON = " from Python>"
"""How the text ends that stands for an object in plain values."""
MOST_SEED = 2**32 - 1
"""So that seed, step and rank together fit the 64 bits that torch's generators take."""
FILES = ("data", "val_data", "test_data")
NAMES = ("metrics", "holdout_tasks")
"""Options that are lists of names."""
PLUGGABLE = ("method", "task", "objective", "optimizer")
"""Options that name a registered class: a name, `{name: ..., option: ...}`, or (in Python) an instance."""


@dataclass(kw_only=True)
class TrainingConfig:
    """Everything that decides a run. Checked on construction; `as_dict` is what `config.yaml` holds."""

    model: str
    """Folder, hub id, run folder or adapter of the model to fine-tune; `embedded` is the small model that is shipped."""
    data: list[str]
    """Training files, globs, folders or hub ids (owner/name:split); a `split` column (train, validation, test) is followed."""
    val_data: list[str] | None = None
    """Files for the validation loss; None: split off `data`."""
    test_data: list[str] | None = None
    """Files for the verdict; None: split off `data`."""
    split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    """Shares of train, validation and test where the data say nothing."""
    holdout_tasks: list[str] | None = None
    """Values of the column `task` whose rows are the test, all of them and only they; None: rows by `split`."""
    mix: dict[str, float] = field(default_factory=dict)
    """Weight of each of `data` in an epoch, by the name it has there: {a.jsonl: 2, b.jsonl: 1}; small ones are repeated."""
    mix_temperature: float | None = None
    """Weights by size to the power of 1 / temperature instead: 1 is by size, the higher the more equal."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names that the task reads, each with the files' column for it: {prompt: question}; `a|b`: the first that a row has."""
    task: Any = "auto"
    """What a row is; auto: by its columns."""
    template: str = "auto"
    """Chat template: auto (the tokenizer's own, else alpaca), chat, alpaca, tags, or a Jinja file."""
    method: Any = None
    """What trains; None: the method that declares itself the default, else full."""
    objective: Any = None
    """What is minimised; None: the likelihood of the answers (sft)."""
    metrics: list[str] | None = None
    """Metrics of the verdict beside loss, perplexity and token accuracy; None: those of the task."""
    optimizer: Any = "AdamW"
    """Optimiser class by name."""
    epochs: float = 3.0
    """Passes over the training rows; a part of an epoch is allowed."""
    max_steps: int | None = None
    """Optimiser steps after which training ends, if earlier than `epochs`; None: no such limit."""
    batch_size: int | None = None
    """Rows per rank and micro-batch; one with too many tokens is cut further, exactly. None: 16, or by `batch_tokens`."""
    batch_tokens: int | None = None
    """Most tokens (padding included) of a micro-batch; with `batch_size` None this also sets the rows per step. None: what
    about a quarter of the memory holds, at most 2,048 on a CPU and 16,384 on a GPU."""
    accumulate: int = 1
    """Micro-batches per rank and optimiser step."""
    eval_batch_size: int | None = None
    """Rows of a validation batch, which change nothing but memory and time; None: as many as have 8192 tokens."""
    learning_rate: float | None = None
    """Peak learning rate; None: 2e-4 where adapters train, 2e-5 where base weights do."""
    lr_scheduler: Schedule = "cosine"
    """What follows the warm-up: constant, linear, cosine, cosine_with_restarts, inverse_sqrt, or wsd (stable, then decay)."""
    warmup: float = 0.03
    """Warm-up: a share of all steps if below 1, else a number of steps."""
    lr_cycles: int = 2
    """Cosines of cosine_with_restarts, each beginning at the peak."""
    lr_decay: float = 0.2
    """Decay of wsd, at the end of the run: a share of all steps if below 1, else a number of steps."""
    lr_decay_shape: DecayShape = "1-sqrt"
    """Shape of the decay of wsd: linear, cosine or 1-sqrt."""
    lr_min: float = 0.0
    """Where a decay ends, as a share of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over the vocabulary, in training; validation and verdict have none."""
    neftune_noise_alpha: float | None = None
    """Noise on the embeddings in training: uniform in +-alpha / sqrt(tokens of the document * width); None: none."""
    dropout: float | None = None
    """Probability of the model's own dropouts (attention, residual, embedding); None: as its config says."""
    max_length: int | None = None
    """Longest row in tokens; None: the model's context, at most 2048."""
    packing: Packing = "auto"
    """Several documents in one row without padding: on, off, or auto (on where a check at the start finds them kept apart)."""
    eval_every: int | None = None
    """Steps between validations; None: a tenth of the run, at least 10."""
    save_every: int | None = None
    """Steps between checkpoints, beside which the best and the last one are saved; None: with every validation, or where one
    would be; 0: none at all."""
    save_behind: bool = False
    """Write checkpoints while training goes on, from copies that take as much memory again as what is saved."""
    log_every: int | None = None
    """Steps between lines of the log; None: 10, and fewer in a run of less than 200 steps, which has 20 lines."""
    keep_best: int = 1
    """How many checkpoints are kept beside the newest, best first."""
    monitor: str = "val_loss"
    """What `keep_best`, `best_model` and `early_stopping` look at: val_loss, val_token_accuracy, val_loss/FILE with several
    files, `val_` and what the objective measures (val_reward_accuracy ...), or what a callback of yours logs."""
    monitor_mode: Mode = "auto"
    """Which way `monitor` is better, min or max; auto: known of what validation measures."""
    early_stopping: int | None = None
    """Validations without improvement after which training stops; None: never."""
    early_stopping_threshold: float = 0.0
    """An improvement counts for `early_stopping` where it is larger than this."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware computes it fast, else fp32."""
    master_weights: Master = "fp32"
    """Where base weights train in bf16. fp32: they are float32, and cast for every product; split: the model holds their upper
    16 bits and the optimiser the lower, so that nothing is cast and no update is rounded away, and activations are bf16, too;
    none: bf16 alone, in which small updates are lost."""
    quantize: Format | None = None
    """Keep the frozen base in few bits (QLoRA): nf4, fp4 or int8; None: as `precision` says, or as the adapter that is
    trained on was."""
    double_quant: bool = False
    """Quantise the scales of 4-bit blocks too: 0.37 bits a weight less."""
    compute_dtype: ComputeType | None = None
    """What 4-bit weights are turned back into for a product; None: as `precision`."""
    strategy: str = "auto"
    """auto, ddp; fsdp2: parameters are spread over the processes; tp: layers are cut in pieces; fsdp2_tp: both; or any strategy
    name that Lightning knows."""
    tensor_parallel: int | None = None
    """Processes that hold each layer together, under tp and fsdp2_tp; None: all (tp), all of a machine (fsdp2_tp)."""
    rank_timeout: float = 1800.0
    """Seconds after which a process that does not answer the others is taken for lost, and all of them stop."""
    devices: int | str = "auto"
    """How many processes or which GPUs; auto: one CPU process, or every GPU."""
    workers: int = 0
    """Processes that collate batches in the background."""
    gradient_checkpointing: bool | int = False
    """Recompute activations in the backward pass: less memory, about a third more time. A number n: those of every n-th
    decoder layer only, which keeps and costs something between."""
    activation_offload: bool = False
    """Keep what the layers of `gradient_checkpointing` are recomputed from in the host's memory: still less of the GPU's, for
    copies there and back."""
    compile: bool = False
    """Compile each decoder layer with torch.compile, once for all layers and lengths of rows; the first step then takes long
    (on a CPU up to minutes), and dropout draws other numbers. Validation and answers run as without."""
    seed: int = 0
    """Decides the order of rows, the split, dropout and new weights."""
    name: str | None = None
    """Name of the run folder under runs/; None: <task>_<data>_<n>."""
    output: str | None = None
    """The run folder to write; None: runs/<name>."""
    resume: str | None = None
    """auto, a run folder or a checkpoint: go on where it stopped."""
    stream: int | None = None
    """Rows of a shard: `data` are encoded shard by shard while training, for sources larger than the disk; needs `max_steps`,
    which alone counts: `data` are read again as often as they take. None: everything at once."""
    on_error: OnError = "fail"
    """Unreadable rows: fail lists them and stops; skip allows 1 % into a quarantine file."""
    max_lost: float = 0.05
    """Largest share of rows that `max_length` may cut or empty before the run refuses to start."""
    verdict_rows: int = 200
    """Test rows that base and tuned model answer for the verdict; 0: no verdict."""
    retention: str = "general"
    """General rows whose loss says what was forgotten: general (60 texts that are shipped), none, or a file."""
    max_new_tokens: int = 128
    """Longest answer in tokens, in the verdict and in samples."""
    preflight: bool = True
    """Run the longest batch, an evaluation and a save before training starts."""
    from_scratch: bool = False
    """Start from random weights of the model's config instead of its weights (pretraining)."""
    revision: str | None = None
    """Commit of a hub model."""
    trust_remote_code: bool = False
    """Run the model repository's own Python code; needs `revision`, and is never taken from a config file."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further arguments of Lightning's Trainer."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            setattr(self, f.name, _normal(f.name, getattr(self, f.name)))
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            check_choice(f.name, getattr(self, f.name), hints[f.name])
            check_type(f.name, getattr(self, f.name), hints[f.name])
        for name in (*FILES, *NAMES):
            if not all(getattr(self, name) or ["-"]):
                raise UsageError(f"Expected --{name} to be names that are not empty; got {getattr(self, name)!r}.")
        for name in POSITIVE:
            check_number(name, getattr(self, name), above=0)
        for name in NOT_NEGATIVE:
            check_number(name, getattr(self, name), least=0)
        for name in SHARES:
            check_number(name, getattr(self, name), below=1)
        if not isinstance(self.gradient_checkpointing, bool):
            check_number("gradient_checkpointing", self.gradient_checkpointing, above=0)
        for name, column in self.columns.items():
            if not (isinstance(name, str) and isinstance(column, str) and name and column):
                raise UsageError(f"Expected --columns to be names with columns, as {{prompt: question}}; got {self.columns!r}.")
        weights = self.mix.values()
        good = all(isinstance(w, (int, float)) and not isinstance(w, bool) and 0 < w < math.inf for w in weights)
        if not good or not all(isinstance(name, str) for name in self.mix):
            raise UsageError(f"Expected --mix to be weights above 0, as {{a.jsonl: 2, b.jsonl: 1}}; got {self.mix!r}.")
        if self.mix and self.mix_temperature is not None:
            raise UsageError("Expected either --mix or --mix_temperature, got both.")
        if self.stream is not None:
            self._check_stream()
        wanted(self)
        if not self.data:
            raise UsageError("Expected --data to name at least one file; got none.")
        if self.seed > MOST_SEED:
            raise UsageError(f"Expected --seed to be at most {MOST_SEED}; got {self.seed}.")
        if self.name is not None and not re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]+", self.name):
            raise UsageError(
                f"Expected --name to be the name of a folder under runs/; got '{self.name}': use --output for a path."
            )
        self._check_readers()
        if len(self.split) not in (2, 3) or min(self.split) < 0 or not math.isclose(sum(self.split), 1, abs_tol=1e-6):
            raise UsageError(f"Expected --split to be 2 or 3 shares that add up to 1, as [0.8,0.1,0.1]; got {self.split}.")
        if self.trust_remote_code and not self.revision:
            raise UsageError("Expected --revision with --trust_remote_code, to pin the code that runs; got none.")

    def _check_readers(self) -> None:
        """Refuse an option that nothing would read."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, (other, values) in READ_WITH.items():
            if getattr(self, name) != defaults[name] and (got := getattr(self, other)) not in values:
                raise UsageError(
                    f"Expected --{other} {' or '.join(values)} with --{name}, which nothing else reads; got {got}."
                )
        if self.activation_offload and not self.gradient_checkpointing:
            raise UsageError("Expected --gradient_checkpointing with --activation_offload, which nothing else reads; got none.")
        if self.retention not in ("general", "none") and self.verdict_rows == 0:
            raise UsageError("Expected --verdict_rows above 0 with --retention, which nothing else reads; got 0.")
        if self.early_stopping_threshold and self.early_stopping is None:
            raise UsageError("Expected --early_stopping with --early_stopping_threshold, which nothing else reads; got none.")

    def _check_stream(self) -> None:
        if self.max_steps is None:
            raise UsageError("Expected --max_steps with --stream, as the number of rows is not known before; got none.")
        for name in ("mix", "mix_temperature", "holdout_tasks"):
            if getattr(self, name):
                raise UsageError(f"Expected --stream without --{name}, which needs all rows before the first step; got both.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML; instances of methods, tasks ... become `{name, option: value}`."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            out[f.name] = describe(value) if f.name in PLUGGABLE else _plain(value)
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The checked config; an unknown key is refused with a suggestion."""
        known = option_names()
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known)
                raise UsageError(f"Expected one of the options of `lightning-ft fit --help`, got '{key}'.{hint}")
        for key in ("model", "data"):
            if not values.get(key):
                raise UsageError(f"Expected --{key}, got nothing; type `lightning-ft fit --model PATH_OR_HUB_ID --data FILE`.")
        return cls(**values)


def option_names() -> tuple[str, ...]:
    """Names of all everyday options."""
    return tuple(f.name for f in dataclasses.fields(TrainingConfig))


def describe(value: Any) -> Any:
    """A method, task, objective or optimiser choice as plain values: `{name, option: value ...}`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"name": getattr(value, "name", type(value).__name__), **dataclasses.asdict(value)}
    return dict(value) if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    """A copy in plain values; an object (a callback from Python) becomes a text that no parser takes for a class."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{type(value).__module__}.{type(value).__qualname__}{OF_PYTHON}"


def from_python(value: Any) -> bool:
    """Whether plain values stand for an object that they cannot make again."""
    if isinstance(value, Mapping):
        return any(from_python(item) for item in value.values())
    if isinstance(value, list):
        return any(from_python(item) for item in value)
    return isinstance(value, str) and value.endswith(OF_PYTHON)


def _normal(name: str, value: Any) -> Any:
    """Paths as text, one file or metric as a list of one, GPUs in a list as `0,1,`."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and name in (*FILES, *NAMES):
        value = [value]
    if isinstance(value, tuple) and name in (*FILES, *NAMES, "split"):
        value = list(value)
    if isinstance(value, list) and name in FILES:
        value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    if isinstance(value, dict) and name == "mix":  # YAML takes 1e9 for a text
        value = {key: float(item) if isinstance(item, str) and NUMBER.fullmatch(item) else item for key, item in value.items()}
    if isinstance(value, list) and name == "holdout_tasks":
        value = [word for item in value for word in (item.split(",") if isinstance(item, str) else [item])]
    if isinstance(value, (list, tuple)) and name == "devices":
        value = "".join(f"{item}," for item in value)
    if name == "gradient_checkpointing" and type(value) is int and value == 1:  # every layer
        value = True
    return value
