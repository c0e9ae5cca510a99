"""The plan: a row for every registered method, and what is recommended."""

from __future__ import annotations

import gc
import shlex
import warnings
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import LightningFTError, UsageError
from lightning_ft.quantization import Quantization, wanted
from lightning_ft.registry import CORE, registry
from lightning_ft.run.quiet import quiet_libraries
from lightning_ft.run.vocabulary import training
from lightning_ft.run.ways import check_offload
from lightning_ft_plan.forecast import Row, Surroundings
from lightning_ft_plan.hollow import TooLongError
from lightning_ft_plan.machine import Target, resident
from lightning_ft_plan.rules import Goal, Kind, Recommendation, advise, recommend
from lightning_ft_plan.together import together
from lightning_ft_plan.typed import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning_ft.cli.resolve import Request
    from lightning_ft.method import Method
    from lightning_ft.run.hardware import Formats
    from lightning_ft_plan.scene import Account, Scene
    from lightning_ft_plan.timing import Speed
    from lightning_ft_plan.workload import Load, Workload

QUANTISER = "quantize"
"""Name of the plugin that loads a quantised base, as the registry lists it."""


@dataclass(frozen=True)
class Plan:
    """What the command shows."""

    target: Target
    model: str
    files: tuple[str, ...]
    """The data, as the user named them."""
    parameters: int
    rows: tuple[Row, ...]
    data: Mapping[str, Any]
    """Training rows, tokens, steps and shapes."""
    speed: tuple[str, ...]
    """What the times rest on."""
    recommendation: Recommendation
    command: str | None
    """The run that is recommended, with everything else that the user asked for; None: none is."""
    advice: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, always with the same keys."""
        return {
            "model": self.model, "files": list(self.files), "parameters": self.parameters, "device": self.target.device,
            "memory": self.target.memory,
            "data": dict(self.data), "methods": [row.as_dict(self.target.memory) for row in self.rows],
            "time": list(self.speed), "recommendation": self.recommendation.as_dict(),
            "command": self.command, "advice": list(self.advice),
        }  # fmt: skip


class Planning:
    """Makes a plan.

    Args:
        request: The run's options and those that the user set.
        target: What is planned for.
        say: Prints a line.
    """

    def __init__(self, request: Request, target: Target, say: Callable[[str], None]) -> None:
        import lightning.pytorch.loggers
        import peft  # noqa: F401  # a run has imported both by its first step, and so the memory that they take

        from lightning_ft_plan.rehearsal import packing, plain_head
        from lightning_ft_plan.scene import Scene, has_dropout
        from lightning_ft_plan.workload import Workload

        assert lightning.pytorch.loggers
        self.request = request
        config, given = request.config(), request.given
        check_offload(config, target.device)
        if config.compile:
            say("compile: memory and time are planned as without it")
            config = replace(config, compile=False)
        self.config, self.given = config, given
        self.method_given = dict(config.method) if isinstance(config.method, dict) else {}
        self.work: Workload = Workload(config, given, target.device, target.memory, say)
        if (size := self.work.world.size) > 1 and target.device == "cpu":
            say(f"memory: {size} processes share it, so each is planned with one part in {size}")
        self.target = replace(target, memory=self.work.memory)
        self.process = resident() if target.device == "cpu" else 0
        choices = self.work.choices
        self.chosen: Method = choices.method
        self.stored = wanted(config) or Quantization(quantize="nf4")
        """Of the row with a quantised base."""
        self.scene: Scene = Scene(
            config, self.work.model_config, choices.objective, choices.optimizer, choices.optimizer_options, 1
        )
        self.scene = replace(self.scene, head=plain_head(self.scene))
        if config.packing != "off":
            self.scene = replace(self.scene, checks=packing(self.scene, self.work.prepared.longest))
        self.packs = bool(self.scene.checks)
        self.shares = self.packs and self.work.shares and not has_dropout(self.scene)
        """Whether packed rows have what all of them begin with only once, unless a method has dropout."""
        self.parameters = 0
        """Numbers of the model, known with the first row."""
        self._loads: dict[tuple[bool, bool], Load] = {}
        self._speeds: dict[bool, Speed | None] = {}

    # ---- rows ---------------------------------------------------------------------------------------------------

    def methods(self) -> list[tuple[str, Method, Mapping[str, Any]]]:
        """Every registered method with its default options, the chosen one with the user's."""
        found: list[tuple[str, Method, Mapping[str, Any]]] = []
        for entry in registry().methods.values():
            chosen = entry.cls is type(self.chosen)
            options = {k: v for k, v in self.method_given.items() if k != "name"} if chosen else {}
            found.append((entry.name, self.chosen if chosen else entry.cls(), options))
        return found

    def rows(self, done: Callable[[str], None]) -> list[Row]:
        """The rows of the table, the quantised base behind the method that is the default on a frozen one.

        Args:
            done: Told the name of each row that is finished.
        """
        default = registry().methods.default().cls
        jobs: list[tuple[str, Callable[[], Row]]] = []
        kinds: dict[bool, int] = {}
        for name, method, options in self.methods():
            kinds.setdefault(method.trains_base, len(jobs))
            jobs.append((name, partial(self._row, name, method, options)))
            if type(method) is default and not method.trains_base:
                jobs.append((name, partial(self._quantised_row, name, method, options)))

        def one(number: int) -> Row:
            row = jobs[number][1]()
            gc.collect()
            return row

        found: dict[int, Row] = {}
        for number in kinds.values():  # these time the machine, which has to do nothing else
            found[number] = one(number)
            done(jobs[number][0])
        rest = [number for number in range(len(jobs)) if number not in found]
        rows = together([partial(one, number) for number in rest], lambda n: done(jobs[rest[n]][0]))
        found.update(zip(rest, rows, strict=True))
        return [found[number] for number in range(len(jobs))]

    def _row(self, name: str, method: Method, options: Mapping[str, Any]) -> Row:
        row = Row(name, name, options)
        if self.config.gradient_checkpointing and not method.can_checkpoint:
            return replace(row, reason="does not work with recomputed activations; leave --gradient_checkpointing out")
        try:
            return self._filled(row, method, *self._account(method))
        except UsageError as error:
            return replace(row, reason=f"not for this model: {str(error).strip().rstrip('.')}")
        except LightningFTError:
            raise
        except Exception as error:  # whatever a method, peft or a model's own code does without data
            said = (
                str(error)
                if isinstance(error, TooLongError)
                else f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            )
            return replace(row, reason=f"not predicted, as {said}; `fit --method {name}` measures it before it trains")

    def _quantised_row(self, name: str, method: Method, options: Mapping[str, Any]) -> Row:
        formats = self.target.formats(trains_base=method.trains_base)
        stored = self.stored.computing_in(formats.weights)
        row = Row(f"{name} + {stored.quantize}{' double' if stored.double_quant else ''}", name, options, self.stored)
        if QUANTISER not in {info.name for info in registry().plugins if not info.blocked}:
            row = replace(row, note=f"needs plugin {QUANTISER}")
        try:
            account, load, _ = self._account(method, stored)
            return self._filled(row, method, account, load, formats, stored)
        except UsageError as error:
            return replace(row, reason=f"not for a quantised base: {str(error).strip().rstrip('.')}")
        except Exception as error:  # as above
            return replace(row, reason=f"not predicted ({type(error).__name__})")

    def _account(self, method: Method, stored: Quantization | None = None) -> tuple[Account, Load, Formats]:
        from lightning_ft_plan.rehearsal import account

        if self.work.new_tokens:
            method = training(method, list(self.work.new_tokens), "the task adds tokens")
        load = self._load_of(method)
        formats = self.target.formats(trains_base=method.trains_base)
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = account(
                self.scene, method, formats, load.step, load.validation, gpu=self.target.device == "gpu", stored=stored
            )
        return found, load, formats

    def _load_of(self, method: Method) -> Load:
        """The steps as they are with a method."""
        from lightning_ft_plan.scene import has_dropout

        packed = self.packs and method.can_pack
        shared = packed and self.shares
        load = self._load(packed=packed, shared=shared)
        self.scene = replace(self.scene, total_steps=load.steps)
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if shared and has_dropout(self.scene, method):
                return self._load(packed=packed, shared=False)
        return load

    def _load(self, *, packed: bool, shared: bool) -> Load:
        if (packed, shared) not in self._loads:
            self._loads[packed, shared] = self.work.load(packed=packed, shared=shared)
        return self._loads[packed, shared]

    def _filled(
        self, row: Row, method: Method, account: Account, load: Load, formats: Formats, stored: Quantization | None = None
    ) -> Row:
        moment, parts = self._surroundings(account, load, formats, stored).parts(account)
        speed = self._speed(account, trains_base=method.trains_base)
        seconds = None if speed is None else speed.seconds(account, load.mean_share)
        self.parameters = round(account.parameters)
        return replace(
            row, trainable=round(account.trainable), parts=parts, moment=moment, step_seconds=seconds,
            total_seconds=None if seconds is None else seconds * load.steps,
        )  # fmt: skip

    def _surroundings(self, account: Account, load: Load, formats: Formats, stored: Quantization | None) -> Surroundings:
        from lightning_ft_plan.fewbits import QUANTISING
        from lightning_ft_plan.gpu import gpu_chunk

        if self.target.device == "gpu":
            tokens = load.step.micro[0].input_ids.numel()
            chunk = gpu_chunk(self.scene, formats, self.target.memory, tokens)
            return Surroundings("gpu", self.process, load.shapes, chunk=chunk)
        base, dtype = Path(self.work.location.base), getattr(self.work.model_config, "dtype", None)
        reading = sum(path.stat().st_size for path in base.glob("*.safetensors")) if base.is_dir() else 0
        if stored is not None:
            reading = round(
                (reading or account.parameters * (dtype or formats.weights).itemsize)
                + account.widest * QUANTISING[stored.quantize]
            )
        elif dtype in (None, formats.weights):
            reading = 0  # weights are read from the file as they are needed
        return Surroundings("cpu", self.process, load.shapes, reading)

    def _speed(self, account: Account, *, trains_base: bool) -> Speed | None:
        """What the machine does with these formats; None where the device is not here."""
        import torch

        from lightning_ft_plan.timing import measure

        if trains_base not in self._speeds:
            here = self.target.device == "cpu" or torch.cuda.is_available()
            entries = [entry for entry in registry().methods.values() if entry.cls.trains_base == trains_base]
            plain = [entry for entry in entries if entry.cls.default] or entries
            method = plain[0].cls()
            formats = self.target.formats(trains_base=trains_base)
            load = self._load_of(method)
            device = torch.device("cuda" if self.target.device == "gpu" else "cpu")
            with quiet_libraries(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._speeds[trains_base] = measure(self.scene, method, formats, load.step, account, device) if here else None
        return self._speeds[trains_base]

    # ---- the whole ----------------------------------------------------------------------------------------------

    def plan(self, rows: list[Row], goal: Goal) -> Plan:
        """The plan over finished rows."""
        load = self._load(packed=self.packs, shared=self.shares)
        values = {name: getattr(self.config, name) for name in self.given if hasattr(self.config, name)}
        advised = recommend(_ways(rows), self.target.memory, goal, self.work.trained_rows, self.parameters)
        name = next((row.method for row in rows if row.name == advised.row), None)
        method, options = next(
            ((method, options) for other, method, options in self.methods() if other == name),
            (self.chosen, {k: v for k, v in self.method_given.items() if k != "name"}),
        )
        return Plan(
            self.target, self.config.model, tuple(self.config.data), self.parameters, tuple(rows),
            {
                "rows": self.work.trained_rows, "tokens": self.work.trained_tokens, "steps": load.steps,
                "largest_micro_batch": load.step.micro[0].input_ids.numel(), "shapes": load.shapes,
                "max_length": self.work.texts.encoder.max_length, "packed": self.packs,
            },
            tuple(dict.fromkeys(speed.said for speed in self._speeds.values() if speed is not None)),
            advised,
            None if name is None else self._command(method, advised.flags),
            tuple(advise(options, method, values, self.work.choices.objective)),
        )  # fmt: skip

    def _command(self, method: Method, flags: tuple[str, ...]) -> str:
        """What to type: the forecast holds for the run with all options that were given, so none may be missing that it has."""
        own = ["--model", self.config.model, "--data", *self.config.data]
        left_out = {"model", "data", "method", *(field.name for field in fields(Quantization))}
        if not method.trains_base:
            left_out.add("master_weights")  # its row was forecast without them, and `fit` refuses them
        return shlex.join(["lightning-ft", "fit", *own, *words(self.request, without=left_out), *flags])


def _ways(rows: list[Row]) -> dict[Kind, Row]:
    """The rows that stand for the ways to train: the default adapter, that on a quantised base, and all weights."""
    methods = registry().methods
    found: dict[Kind, Row] = {}
    for row in rows:
        if row.reason:
            continue
        if row.stored is not None:
            if not row.note:  # what is not installed is not recommended
                found["quantised"] = row
        elif row.method == methods.default().name and not methods[row.method].cls.trains_base:
            found["adapter"] = row
        elif methods[row.method].plugin == CORE:
            found["full"] = row
    return found
