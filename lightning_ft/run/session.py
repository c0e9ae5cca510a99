"""One run from config to verdict: the straight line that `fit` walks."""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.atomic import REFUSED, not_written, write_json
from lightning_ft.backbone import (
    BackboneSpec,
    check_folder,
    load_config,
    load_tokenizer,
    positions_of,
    set_dropout,
)
from lightning_ft.data.pipeline import Pipeline, Prepared, copy_quarantine
from lightning_ft.errors import LostRankError, RunInterruptedError, TrainingError, UsageError, out_of_memory
from lightning_ft.loading import Loaded, Location, load, locate
from lightning_ft.monitor import check_measured, told_apart
from lightning_ft.quantization import full_precision, settle
from lightning_ft.registry import Registry, registry
from lightning_ft.run import folder as folders
from lightning_ft.run.choices import Choices, choose, take_defaults
from lightning_ft.run.memory import MICRO_TOKENS, device_memory, micro_tokens
from lightning_ft.run.narrow import load_narrow, reads_narrow
from lightning_ft.run.planning import Planner, check_sizes
from lightning_ft.run.quiet import quiet_libraries, say
from lightning_ft.run.resume import Facts, Resume, find_resume
from lightning_ft.run.same import changed_options, fingerprint
from lightning_ft.run.strategies import RENAMED, SHARDED, SPREADS, WHOLE, check_cuts, check_strategy
from lightning_ft.run.texts import Texts
from lightning_ft.run.trainer_arguments import check_trainer_names
from lightning_ft.run.verdict import check_retention, held_out
from lightning_ft.run.vocabulary import extend
from lightning_ft.run.ways import check_ways, take_ways
from lightning_ft.run.world import World, check_here, world
from lightning_ft.signs import lines_of, signs
from lightning_ft.vocabulary import grow

if TYPE_CHECKING:
    import lightning.pytorch as L
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch import nn

    from lightning_ft.bootstrap import Verdict
    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.datamodule import FineTuneData
    from lightning_ft.data.schedule import Schedule
    from lightning_ft.module import FineTuner
    from lightning_ft.run.callbacks import Saver
    from lightning_ft.run.card import ModelWriter
    from lightning_ft.run.preflight import Estimate
    from lightning_ft.run.ranks import Ranks

VALIDATIONS, LEAST_APART = 10, 10
"""Validations of a run, and the fewest steps between two, where the user does not say how often."""


class Session:
    """Everything of a run that lives in this process.

    Args:
        config: The run's options.
        given: Options that the user set, which a task's defaults must not touch.
        cluster: How Lightning finds the other processes; None: as it finds out itself.
    """

    folder: folders.RunFolder
    module: FineTuner
    data: FineTuneData
    trainer: L.Trainer
    saver: Saver
    ranks: Ranks
    writer: ModelWriter

    def __init__(
        self, config: TrainingConfig, given: frozenset[str] = frozenset(), cluster: ClusterEnvironment | None = None
    ) -> None:
        self.config, self.cluster = config, cluster
        self.registry: Registry = registry()
        named, config.strategy = config.strategy, RENAMED.get(config.strategy, config.strategy)
        self.world: World = world(config)
        check_here(self.world)
        self.say = say if self.world.main else lambda line: None
        if named != config.strategy:
            self.say(f"strategy: {config.strategy}, which has taken the place of {named}")
        self.choices: Choices = choose(config, self.registry)
        take_defaults(config, self.choices.task, given)
        self.hash = folders.config_hash(config)
        self.resume: Resume | None = find_resume(config, self.hash, self.say)
        check_retention(config)
        check_strategy(config, self.choices)
        check_trainer_names(config.trainer)
        check_ways(config, self.choices.method, self.world.device, whole=config.strategy in WHOLE)
        known = self.resume or config.output or "LIGHTNING_FT_RUN" in os.environ
        if config.stream is not None and self.world.launched and not known:
            # No process could tell the others which folder has the shards.
            raise UsageError("Expected --output with --stream where processes are started from outside; got none.")
        if self.world.main and self.resume is not None:
            folders.check_free(self.resume.run)
        elif self.world.main:
            folders.check_target(config)
        self.location: Location = locate(config.model, revision=config.revision)
        hub: dict[str, Any] = {"revision": self.location.revision, "trust_remote_code": config.trust_remote_code}
        stored = settle(config, self.location.quantization, self.choices.method, goes_on=self.location.adapter is not None)
        self.changed: dict[str, Any] = {}
        if self.resume is not None:
            self.changed = changed_options(self.resume.run, config, self.choices, self.location, self.say)
        self.spec = BackboneSpec(model=self.location.base, from_scratch=config.from_scratch, quantization=stored, **hub)
        if Path(self.spec.model).is_dir():
            check_folder(Path(self.spec.model), self.spec)
        model_config = full_precision(load_config(self.spec), config.model)
        check_cuts(config, self.world, model_config)
        positions = positions_of(model_config, self.choices.method.leading_positions)
        texts = Texts.of(load_tokenizer(self.location.tokenizer, **hub), config.template, config.max_length, positions)
        self.choices, self.texts, self.new_tokens = extend(config, self.choices, self.location, texts, self.say)
        self._prepare()

    def _prepare(self) -> None:
        """Data first: what is wrong with it is said before any weight is loaded."""
        self.pipeline = Pipeline(
            self.config, self.registry, self.texts.encoder, self.choices.task, self.choices.objective.examples, self.say
        )
        self.prepared: Prepared = self.pipeline.prepare()
        if self.choices.task is None:
            self.say(f"task: {self.prepared.task.name}, by the columns")
        self.config.task = self.prepared.task
        check_sizes(self.config, self.world, self.prepared.tables["train"])
        objective = self.choices.objective
        self.sources = () if objective.measures else told_apart(self.prepared.ledger)
        check_measured(self.config, objective, self.sources, validates=len(self.prepared.tables["validation"]) > 0)

    # ---- building ---------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Folder, schedule, module and trainer."""
        import torch

        from lightning_ft.data.datamodule import FineTuneData
        from lightning_ft.module import FineTuner
        from lightning_ft.run.hardware import device_name, formats, place
        from lightning_ft.run.heap import keep_heap
        from lightning_ft.run.training import make_trainer
        from lightning_ft.threads import keep_to_quota

        method = self.choices.method
        chosen = formats(self.config.precision, trains_base=method.trains_base, master=self.config.master_weights)
        self.say(chosen.sentence)
        if self.config.strategy in SPREADS and method.trains_base:
            chosen = chosen.sharded
        device = self.world.device
        self.spec = replace(self.spec, dtype=chosen.weights, device=device)
        self._narrow = not self.new_tokens and reads_narrow(chosen, self.spec)  # new rows are means, to be made in full width
        if self.spec.quantization is not None:
            self.spec = replace(self.spec, quantization=self.spec.quantization.computing_in(chosen.weights))
        if device.type == "cpu":
            keep_heap()
            keep_to_quota(self.world.on_machine)
        torch.manual_seed(self.config.seed)  # decides new weights, of --from_scratch
        model = self._load()
        if self.config.strategy in WHOLE:  # the checks below have to meet the kernels that train
            place(model, device)
        packed = self._packed(model)
        planner = Planner(
            self.config, self.world, packed=packed, micro_tokens=self._micro_tokens(model),
            planned=None if self.resume is None else self.resume.world_size,
        )  # fmt: skip
        self.schedule: Schedule = planner.whole(self.prepared.tables["train"], self.say)
        streams = self.config.stream is not None
        self.total_steps = total = (self.config.max_steps or 0) if streams else self.schedule.total_steps
        self.eval_every = self.config.eval_every or max(math.ceil(total / VALIDATIONS), min(total, LEAST_APART))
        holder = [model]
        del model  # the list holds the only reference, so that configure_model can take it over
        self.module = FineTuner(
            self.config, method, self.choices.objective, self.choices.optimizer, self.choices.optimizer_options, total,
            lambda: holder.pop() if holder else self._load(),
        )  # fmt: skip
        self.module.start_from = self.location.adapter
        self.module.sources = self.sources
        self.module.shortage.told = self.smaller
        self.module.gathered_in, self.module.held_in = chosen.gathered_in, chosen.weights if self._narrow else None
        self.module.configure_model()
        self.module.configure_optimizers()  # to refuse its options before anything is written
        self.held_out = held_out(self) if self.world.main else None
        self._open_folder(packed=packed)
        self.say(self.module.parameter_line())
        stream = planner.stream(self.pipeline, self.prepared, self.schedule, self.folder, self.say) if streams else None
        self.data = FineTuneData(
            self.prepared.tables, self.schedule, self.texts.tokenizer.pad_token_id or 0,
            workers=self.config.workers, eval_every=self.eval_every, stream=stream, eval_rows=self.config.eval_batch_size,
        )  # fmt: skip
        if self.world.main:
            self.folder.update(
                task=self.prepared.task.name, method=method.name, plugins=[vars(info) for info in self.registry.plugins],
                data=self.prepared.record(), template=self.texts.template.name,
                precision=chosen.sentence, device=device_name(), threads=torch.get_num_threads(), world_size=planner.planned,
                processes=self.world.size, strategy=self.config.strategy, seed=self.config.seed, total_steps=total,
                packed=packed, parameters=self.module.parameter_line(), new_tokens=list(self.new_tokens.values()),
                model=fingerprint(self.location),
            )  # fmt: skip
        self.trainer = make_trainer(self, chosen.lightning)

    def _micro_tokens(self, model: nn.Module) -> int:
        """From this machine's memory; a run over several machines takes what it takes on each."""
        device, world = self.world.device, self.world
        memory = device_memory(device) if world.size == world.on_machine else None
        if memory is not None and device.type == "cpu":
            memory //= world.size
        config: Any = model.config
        found = micro_tokens(config, device.type, memory, recomputed=bool(self.config.gradient_checkpointing))
        if self.config.batch_tokens is None and found < MICRO_TOKENS[device.type]:
            self.say(f"micro-batches: at most {found:,} tokens, as about a quarter of the memory holds (--batch_tokens)")
        return found

    def _load(self) -> nn.Module:
        """The backbone's model, with the dropouts of the run."""
        load = self.registry.manager.hook.load_backbone
        narrow = load_narrow(lambda spec: load(spec=spec), self.spec) if self._narrow else None
        self._narrow = narrow is not None
        backbone = narrow or load(spec=self.spec)
        model: nn.Module = backbone.model
        grow(model, backbone.tokenizer, self.texts.tokenizer, self.new_tokens)
        if self.config.dropout is not None:
            set_dropout(model, self.config.dropout)
        return model

    def _packed(self, model: nn.Module) -> bool:
        """Whether documents share rows; checked on this model before it is believed."""
        from lightning_ft.engine.packing import check_packing

        if self.config.packing == "off" or not self.choices.method.can_pack:
            return False
        check = check_packing(model, longest=self.prepared.longest)
        if check.ok:
            self.say(f"packing: on, packed and separate logits differ by {check.difference:.1e}")
        elif self.config.packing == "on":
            raise UsageError(f"This model cannot keep packed documents apart ({check.reason}); type --packing off.")
        else:
            self.say(f"packing: off, length buckets instead ({check.reason})")
        return check.ok

    def _facts(self, *, packed: bool) -> Facts:
        return Facts(self.prepared.identity, self.total_steps, self.config.strategy, packed, fingerprint(self.location))

    def _open_folder(self, *, packed: bool) -> None:
        """The run folder; ranks beside the main one only need to know where it is."""
        where = os.environ.get("LIGHTNING_FT_RUN")
        if not self.world.main:
            self.folder = folders.RunFolder(self.resume.run if self.resume else Path(where or self.config.output or "runs"))
            return
        if self.resume is not None:
            self.folder = self.resume.open(self.config, self._facts(packed=packed), self.changed)
        else:
            self.folder = folders.create(self.config, self.prepared.task.name, self.hash)
        os.environ["LIGHTNING_FT_RUN"] = str(self.folder.path)
        mixture = self.schedule.mixture
        account = self.prepared.ledger.as_dict() | ({} if mixture is None else {"mixture": mixture.as_dict()})
        write_json(self.folder.path / layout.LEDGER, account)
        copy_quarantine(self.prepared, self.folder.path)
        self.say(f"run folder: {self.folder.path}")

    def estimated(self, estimate: Estimate) -> None:
        """Tell what the preflight measured."""
        self.say(estimate.sentence())
        if self.world.main:
            self.folder.update(preflight=vars(estimate))

    def smaller(self, step: int, parts: int) -> None:
        """Tell that the memory did not suffice for a step (0-based)."""
        self.say(f"out of memory at step {step + 1}: micro-batches are halved from now on ({parts} parts each)")
        if self.world.main:
            before = self.folder.record.get("out_of_memory", [])
            self.folder.update(out_of_memory=[*before, {"step": step + 1, "parts": parts}])

    def facts(self) -> dict[str, str]:
        """Lines of the model card."""
        return {
            "method": self.choices.method.name, "objective": self.choices.objective.name,
            "task": self.prepared.task.name, "chat template": self.texts.template.name,
            "data": ", ".join(self.prepared.ledger.sources), "rows trained on": f"{len(self.prepared.tables['train']):,}",
            "trained with": f"lightning-ft {self.folder.record.get('versions', {}).get('lightning-ft', '')}",
        }  # fmt: skip

    # ---- running ----------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from the beginning or from the checkpoint; leaves run.json with how it ended."""
        from lightning_ft.run.training import end_children
        from lightning_ft.shortage import memory_advice

        started = time.perf_counter()
        checkpoint = str(self.resume.checkpoint) if self.resume and self.resume.checkpoint else None
        try:
            for line in () if self.sharded else take_ways(self.module, self.data):  # the Trainer's `HeadCheck` looks at parts
                self.say(line)
            with quiet_libraries():
                self.trainer.fit(self.module, datamodule=self.data, ckpt_path=checkpoint)
            if not self.sharded:
                self.module.to(self.world.device)  # Lightning takes it off the GPU; the verdict needs it there
        except BaseException as error:
            if isinstance(error, RunInterruptedError):
                end_children(self.trainer, error.signum)
            if self.world.main:
                status = "interrupted" if isinstance(error, (RunInterruptedError, KeyboardInterrupt)) else "failed"
                with contextlib.suppress(OSError):  # on a full disk it is the first error that has to be told
                    self.folder.update(status=status, error=f"{type(error).__name__}: {error}")
            if (gone := self.ranks.lost(error)) is not None:
                raise LostRankError(gone, f"Go on with --resume {self.folder.path}.") from error
            if isinstance(error, OSError) and error.errno in REFUSED:
                raise not_written(self.folder.path, error) from error
            if out_of_memory(error):
                raise TrainingError(f"{memory_advice(error)} Then go on with --resume {self.folder.path}.") from error
            raise
        if self.data.stream is not None:
            self.data.stream.settle(self.trainer.global_step)
        if not self.ended:
            self.say(self.saver.left(self.trainer))
        if self.world.main:
            self.folder.update(train_seconds=round(time.perf_counter() - started, 3), steps=self.trainer.global_step)

    @property
    def ended(self) -> bool:
        """Whether the training has come to its end, so that nobody can go on with it."""
        return self.saver.ended(self.trainer)

    @property
    def sharded(self) -> bool:
        """Whether this process has a part of the model only."""
        return self.config.strategy in SHARDED

    def finish(self) -> None:
        """Final and best model, written by the main process; the others bring their parts."""
        from lightning_ft.atomic import whole_folder
        from lightning_ft.run.checkpoint_io import write_best_model

        with quiet_libraries():
            parts = self.writer.gather(keep=self.world.main) if self.sharded else None
        if not self.world.main:
            return
        with whole_folder(self.folder.path / layout.FINAL) as target:
            self.writer(target, parts)
        if (step := self.saver.best_step) is not None:
            write_best_model(self.folder.path, step)
            self.folder.update(best_step=step)

    @cached_property
    def tuned(self) -> Any:
        """The trained model, whole in this process; one that lay in several is read from `final_model`."""
        return self.load(str(self.folder.path / layout.FINAL)).model if self.sharded else self.module.model

    def load(self, name: str, *, from_scratch: bool = False) -> Loaded:
        """Another model, in the number format and the place of this run's, in evaluation mode."""
        return load(
            name, dtype=self.spec.dtype, device=str(self.world.device), revision=self.config.revision,
            trust_remote_code=self.config.trust_remote_code, from_scratch=from_scratch,
        )  # fmt: skip

    def close(self, status: str | None = None) -> None:
        """Let the folder go."""
        if hasattr(self, "data") and self.data.stream is not None:
            self.data.stream.close(finished=status == "finished")
        if self.world.main and hasattr(self, "folder"):
            with contextlib.suppress(*(OSError,) if status != "finished" else ()):
                if status:
                    self.folder.update(status=status, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
            self.folder.release()
        os.environ.pop("LIGHTNING_FT_RUN", None)  # whatever this process starts next is of another run

    def loaded(self) -> Loaded:
        """The trained model, ready to answer."""
        tokenizer, template = self.texts.tokenizer, self.texts.template
        return Loaded(self.tuned, tokenizer, template, template.stop_tokens(tokenizer))

    def verdict(self) -> Verdict | None:
        """Base and tuned model compared on the same test rows; None where there are none or none are wanted."""
        if self.held_out is None:
            self.say("verdict: none (no test rows, or --verdict_rows 0)")
            for sign in signs(lines_of(self.folder.metrics)):
                self.say(f"sign of trouble: {sign.sentence()}")
            return None
        started = time.perf_counter()
        found = self.held_out.verdict(self)
        write_json(self.folder.path / layout.VERDICT, found.as_dict())
        self.folder.update(verdict_seconds=round(time.perf_counter() - started, 3))
        return found

    def report(self) -> None:
        """report.html over everything that the folder holds."""
        from lightning_ft.report import write_report

        self.say(f"report: {write_report(self.folder.path)}")
