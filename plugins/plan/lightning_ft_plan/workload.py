"""The data of a planned run: encoded by the product's own pipeline, and cut into the steps that it would train."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_ft.backbone import BackboneSpec, load_config, load_tokenizer, positions_of
from lightning_ft.data.datamodule import FineTuneData
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.prefix import common_prefix, common_prompt
from lightning_ft.data.sources import expand
from lightning_ft.errors import UsageError
from lightning_ft.loading import EMBEDDED, locate
from lightning_ft.monitor import check_measured, told_apart
from lightning_ft.quantization import full_precision
from lightning_ft.registry import registry
from lightning_ft.run.choices import Choices, choose, take_defaults
from lightning_ft.run.memory import micro_tokens
from lightning_ft.run.planning import Planner, check_sizes
from lightning_ft.run.strategies import WHOLE
from lightning_ft.run.texts import Texts
from lightning_ft.run.trainer_arguments import check_trainer_names
from lightning_ft.run.verdict import check_retention
from lightning_ft.run.vocabulary import extend
from lightning_ft.run.world import World, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.schedule import Schedule
    from lightning_ft.types import Batch, Step
    from lightning_ft_plan.machine import Device

SAMPLED_FROM, SAMPLE = 20 * 10**6, 4000
"""Bytes of text files from which on only so many of their first rows are encoded."""
LOOKED_AT = 2000
"""Steps that are looked through for the largest micro-batch and the mean."""
TEXTS = (".jsonl", ".ndjson")
"""Files of one row a line, of which a part tells how many there are."""


@dataclass(frozen=True)
class Load:
    """What a run computes, packed or padded."""

    step: Step
    """The step with the largest micro-batch, that one first."""
    validation: Batch | None
    """The largest validation batch."""
    shapes: int
    """Different shapes of micro-batches in the whole run, as far as it is looked through."""
    steps: int
    """Optimiser steps of the run."""
    mean_share: float
    """Tokens of a mean step over those of the largest micro-batch."""


class Workload:
    """Model, tokenizer and encoded rows of a config; nothing of the model but its config is read.

    Args:
        config: The run's options.
        given: Those that the user set.
        device: Decides, with the memory, how much a micro-batch has where the user does not say.
        memory: Bytes.
        say: Prints a line.
    """

    def __init__(
        self, config: TrainingConfig, given: frozenset[str], device: Device, memory: int, say: Callable[[str], None]
    ) -> None:
        if config.strategy not in WHOLE:
            raise UsageError(
                "Expected --strategy auto or ddp, which keep the whole model on each device, as plan counts; got "
                f"'{config.strategy}'."
            )
        self.config, self.device, self.say = config, device, say
        self.world: World = world(config)
        self.memory = memory // self.world.size if device == "cpu" else memory
        """Bytes for each process."""
        self.choices: Choices = choose(config, registry())
        take_defaults(config, self.choices.task, given)
        check_retention(config)
        check_trainer_names(config.trainer)
        self.location = locate(config.model, revision=config.revision)
        hub: dict[str, Any] = {"revision": self.location.revision, "trust_remote_code": config.trust_remote_code}
        self.model_config = full_precision(load_config(BackboneSpec(model=self.location.base, **hub)), config.model)
        positions = positions_of(self.model_config, self.choices.method.leading_positions)
        texts = Texts.of(load_tokenizer(self._tokenizer(), **hub), config.template, config.max_length, positions)
        self.choices, self.texts, self.new_tokens = extend(config, self.choices, self.location, texts, say)
        sizes = self.model_config.get_text_config()
        sizes.vocab_size = max(sizes.vocab_size, *(number + 1 for number in self.new_tokens), 0)
        self.prepared, self.sampled = self._prepare()
        objective, tables = self.choices.objective, self.prepared.tables
        check_sizes(config, self.world, tables["train"])
        sources = () if objective.measures else told_apart(self.prepared.ledger)
        check_measured(config, objective, sources, validates=len(tables["validation"]) > 0)

    def _tokenizer(self) -> str:
        """Where the tokenizer lies; for a folder of nothing but a config, that of the model that is shipped."""
        folder = Path(self.location.tokenizer)
        if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("vocab.*")):
            self.say(
                f"tokenizer: none in '{folder}', so rows are as long as the embedded model's makes them, which has a small "
                "vocabulary: rather longer than they will be"
            )
            return locate(EMBEDDED).tokenizer
        return str(folder) if folder.is_dir() else self.location.tokenizer

    def _prepare(self) -> tuple[Prepared, float]:
        """The encoded rows, and how many rows of the files one of them stands for."""
        config, files = self.config, expand(self.config.data)
        size = sum(path.stat().st_size for path in files)
        task = self.choices.task
        shown = task is not None and task.demonstrations and task.demonstration_file is None  # out of all training rows
        whole = config.mix or config.mix_temperature or config.holdout_tasks or shown
        sampled = (config.stream or (size > SAMPLED_FROM and not whole)) and all(path.suffix in TEXTS for path in files)
        if sampled and config.stream is None:
            config = replace(config, stream=SAMPLE, max_steps=config.max_steps or 1)
        pipeline = Pipeline(
            config, registry(), self.texts.encoder, self.choices.task, self.choices.objective.examples, self.say
        )
        prepared = pipeline.prepare()
        if not sampled or prepared.end is None or prepared.end.turn:  # all rows are there
            return prepared, 1.0
        with files[prepared.end.file].open("rb") as file:
            read = sum(map(len, itertools.islice(file, prepared.end.row)))
        read += sum(path.stat().st_size for path in files[: prepared.end.file])
        times = max(1.0, size / read)
        rows = config.stream or SAMPLE
        self.say(f"data: the first {rows:,} rows stand for about {round(times * rows):,}")
        return prepared, times

    @property
    def trained_rows(self) -> int:
        """Training rows, of all data."""
        return round(len(self.prepared.tables["train"]) * self.sampled)

    @property
    def trained_tokens(self) -> int:
        """Tokens of them."""
        return round(float(self.prepared.tables["train"].lengths.sum()) * self.sampled)

    def load(self, *, packed: bool, shared: bool) -> Load:
        """The steps of a run.

        Args:
            packed: Whether rows share micro-batches without padding.
            shared: Whether what all of these begin with is computed only once, where options allow it.
        """
        kind = "cuda" if self.device == "gpu" else "cpu"
        recomputed = bool(self.config.gradient_checkpointing)
        most = micro_tokens(self.model_config, kind, self.memory, recomputed=recomputed)
        planner = Planner(self.config, self.world, packed=packed, micro_tokens=most)
        tables = self.prepared.tables
        if self.config.stream is not None:
            planner.config = replace(self.config, stream=None)
        schedule = planner.whole(tables["train"], lambda line: None)
        data = FineTuneData(tables, schedule, self.texts.tokenizer.pad_token_id or 0, eval_rows=self.config.eval_batch_size)
        if self.choices.objective.reference:  # what it is makes no difference to sizes and times
            data.references = {split: torch.zeros(len(table), table.texts) for split, table in tables.items()}
        if packed and shared and self.shares:
            table = tables["train"]
            data.share(common_prefix(table) if table.texts == 1 else 0, prompts=common_prompt(table)[0] > 0)
        looked = data.known_steps(LOOKED_AT)
        sizes = {number: max(self._sizes(data, schedule, number)) for number in looked}
        largest = max(looked, key=lambda number: sizes[number])
        step = data.build(largest)
        step.micro = tuple(sorted(step.micro, key=lambda batch: -batch.input_ids.numel()))
        tokens = [sum(self._sizes(data, schedule, number)) for number in looked]
        shapes = {data.shape(micro) for number in looked for micro in schedule.step(number).ranks[0]}
        validation = data.validation_plan() if data.has_validation else []
        batch = None
        if validation:
            lengths = tables["validation"].padded
            batch = data.validation_batch(max(validation, key=lambda b: int(lengths[list(b)].max()) * len(b)))
        return Load(step, batch, len(shapes), self._steps(schedule), float(np.mean(tokens)) / max(1, sizes[largest]))

    def _steps(self, schedule: Schedule) -> int:
        """Optimiser steps of the run: a stream has as many as it is told, other rows as their epochs have, and no more."""
        most = self.config.max_steps
        if self.config.stream is not None:
            assert most is not None
            return most
        found = max(1, round(replace(schedule, max_steps=None).total_steps * self.sampled))
        return found if most is None else min(found, most)

    @cached_property
    def shares(self) -> bool:
        """Whether `fit` would compute only once what all rows begin with, if there is anything and the model has no dropout."""
        if self.config.stream is not None or self.config.neftune_noise_alpha or self.config.compile:
            return False
        table = self.prepared.tables["train"]
        return common_prompt(table)[0] > 0 or (table.texts == 1 and common_prefix(table) > 0)

    @staticmethod
    def _sizes(data: FineTuneData, schedule: Schedule, number: int) -> Iterator[int]:
        """Tokens, padding included, of each micro-batch of the first rank."""
        for micro in schedule.step(number).ranks[0]:
            rows, length = data.shape(micro)
            yield rows * length
