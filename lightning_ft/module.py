"""`FineTuner`: the LightningModule. One Lightning batch is one optimiser step, a tuple of micro-batches.

Lightning's own accumulation divides every micro-batch's mean by their number, which weights tokens wrongly, and loses
gradients in a checkpoint taken inside its window. Here a step is whole: its totals are known before the first backward
pass, each micro-batch adds `sum / total`, and nothing is ever half done when a checkpoint is written.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_ft import optim
from lightning_ft.checkpoint import check_same_adapter, load_trained
from lightning_ft.doubt import Doubt, not_finite
from lightning_ft.engine.compiled import compile_layers
from lightning_ft.engine.gated import fuse_gates, fuse_rotations
from lightning_ft.engine.noise import EmbeddingNoise
from lightning_ft.engine.norm import fuse_norms
from lightning_ft.engine.recompute import checkpoint_activations
from lightning_ft.engine.sharding import Shards, data_place, summed
from lightning_ft.errors import TrainingError, UsageError, out_of_memory
from lightning_ft.master import MasterWeights
from lightning_ft.monitor import LOSS
from lightning_ft.quantization import count_parameters
from lightning_ft.shortage import RunAgainError, Shortage, Untouched, first_line
from lightning_ft.validation import Likelihoods, OwnTerms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from lightning_ft.config import TrainingConfig
    from lightning_ft.method import Method
    from lightning_ft.objective import Objective
    from lightning_ft.types import Batch, Step
    from lightning_ft.validation import Validation


class FineTuner(L.LightningModule):
    """Trains what a method attached to a backbone, on an objective, over scheduled steps.

    Args:
        config: The run's options.
        method: What trains.
        objective: What is minimised.
        optimizer: Optimiser class.
        optimizer_options: Its arguments beside parameters and learning rate.
        total_steps: Optimiser steps of the whole run.
        load: Returns the backbone's model; called once, on every rank, inside Lightning's `configure_model`.
    """

    model: nn.Module

    def __init__(
        self, config: TrainingConfig, method: Method, objective: Objective, optimizer: type[torch.optim.Optimizer],
        optimizer_options: Mapping[str, Any], total_steps: int, load: Callable[[], nn.Module],
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.method = method
        self.objective = objective
        self.optimizer_class = optimizer
        self.optimizer_options = dict(optimizer_options)
        self.total_steps = total_steps
        self.strict_loading = False
        self._load = load
        self._ready = False
        self.shards: Shards | None = None
        """Of a model that lies in several processes."""
        self.gathered_in: torch.dtype | None = None
        """What float32 parameters are gathered in under FSDP2; None: as they are."""
        self.held_in: torch.dtype | None = None
        """What parameters that are spread are kept in, where they came in fewer bits; None: as they came."""
        self.start_from: Path | None = None
        """Folder of an adapter to go on training from."""
        self.learning_rate = config.learning_rate or optim.usual_rate(method, objective)
        self.noise: EmbeddingNoise | None = None
        self.grad_norm = torch.zeros(())
        self.step_loss = torch.zeros(())
        self.counted: dict[tuple[str, str], Tensor] = {}
        """By term and what divides it: what this process summed over in the step."""
        self.logged: dict[str, tuple[Tensor, Tensor]] = {}
        """Sum and count of what the objective logs, over this process's part of the step."""
        self._micro: list[tuple[Tensor, Batch]] = []
        self._doubt: Doubt | None = None
        self.shortage = Shortage(lambda step, parts: None)
        """What becomes of a step for which there is no memory."""
        self._batch: Batch | None = None
        self._loss: Tensor | None = None
        self._updating = self._skipped = False
        self._untouched: Untouched | None = None
        self.sources: tuple[str, ...] = ()
        """Files whose validation loss is told apart."""
        self._validation = self.make_validation()

    def configure_model(self) -> None:
        """Load the backbone and attach the method; Lightning may ask more than once."""
        if self._ready:
            self._shard()
            return
        torch.manual_seed(self.config.seed)
        model = self._load()
        if self.config.gradient_checkpointing:
            checkpoint_activations(model, int(self.config.gradient_checkpointing), offload=self.config.activation_offload)
        self.model = self.method.attach(model, self.total_steps)
        if self.start_from is not None and not self.method.can_continue:
            raise UsageError(
                f"Expected --model without an adapter for --method {self.method.name}, whose saved adapters cannot be trained"
                f" on, got '{self.start_from}'; name its base model, or go on with its run by --resume."
            )
        if self.start_from is not None:
            check_same_adapter(self.model, self.start_from, self.method.schedule)
            load_trained(self.model, self.method, self.start_from)
        for fuse in (fuse_norms, fuse_gates, fuse_rotations):
            fuse(self.model)
        if self.config.compile:
            compile_layers(self.model)
        if self.config.neftune_noise_alpha:
            self.noise = EmbeddingNoise(self.model, self.config.neftune_noise_alpha)
        self.model.train()
        self._ready = True
        self._shard()

    def _shard(self) -> None:
        """Leave this process its part of the model, where Lightning's strategy has a mesh of processes."""
        if self._device_mesh is not None and self.shards is None:
            spread = self.config.strategy != "tp"
            self.shards = Shards(self.model, self._device_mesh, spread=spread, compute=self.gathered_in, held=self.held_in)

    @property
    def data_place(self) -> tuple[int, int]:
        """This process's number among those that see different rows, and how many these are."""
        return data_place(self)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that require a gradient."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def parameter_line(self) -> str:
        """`trainable params: a || all params: b || trainable%: c`."""
        trained, total = count_parameters(self.trained_parameters()), count_parameters(self.model.parameters())
        return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"

    # ---- one optimiser step -------------------------------------------------------------------------------------

    def on_train_batch_start(self, step: Step, index: int) -> None:
        """Check that the schedule and Lightning agree on the step, seed dropout by it, and start from no gradient."""
        if step.number != self.global_step:
            raise TrainingError(
                f"The data loader came with step {step.number} where the optimiser is at step {self.global_step}; "
                "this is a bug in lightning-ft: please report it with the run's config.yaml."
            )
        torch.manual_seed(self._dropout_seed(step.number))
        self.zero_grad(set_to_none=True)
        for resting in self.method.before_step(self.model, step.number):
            for optimizer in self.trainer.optimizers:
                optimizer.state.pop(resting, None)

    def _dropout_seed(self, step: int) -> int:
        """A function of (seed, step, rank), so that no random state has to be stored."""
        return (self.config.seed * 1_000_003 + step) * 4096 + self.data_place[0]

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: Lightning would zero between `training_step` and its backward, where micro-batches have added up."""

    def training_step(self, step: Step, index: int) -> Tensor:
        """Backward through all micro-batches but the last, whose loss Lightning takes backward itself."""
        self.shortage.step, self.shortage.strategy = step, self.trainer.strategy
        self._loss = self._batch = None
        try:
            loss = self._all_but_the_last(step)
        except (RuntimeError, MemoryError) as error:
            self.shortage.note(error, self._batch or step.micro[0])
        if self.shortage.failed:
            self._micro = []
            loss = self.shortage.stand_in(self.trained_parameters())
        self._loss = loss
        return loss

    def _all_but_the_last(self, step: Step) -> Tensor:
        self._micro = []
        self.counted, self.logged = {}, {}
        for batch in step.micro[:-1]:
            self._batch = batch
            loss = self._micro_loss(batch, step)
            self.trainer.strategy.backward(loss, None)
        self._batch = step.micro[-1]
        last = self._micro_loss(self._batch, step)
        self.step_loss = torch.stack([loss for loss, _ in self._micro]).sum()
        penalty = self.method.regularizer(self.model)
        return last if penalty is None else last + penalty

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward; through the last micro-batch ranks reduce the gradients, and agree on whether there was room.

        Raises:
            RunAgainError: there was none, so that `optimizer_step` has to begin anew.
            NoMemoryError: there was none for a single row.
        """
        if self._loss is None:  # of `training_step`, which takes note itself
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch has no types for it
            return
        self.shortage.before_last(self.trained_parameters())
        try:
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch has no types for it
        except (RuntimeError, MemoryError) as error:
            assert self._batch is not None
            self.shortage.note(error, self._batch)
            for tensor in (loss, self._loss):
                tensor.detach_()  # who called still holds them, and by them the graph
            broken = True
        else:
            broken = False
        self._loss = None
        if broken:
            self._micro = []
            self.shortage.finish()
        self.shortage.agree()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The step; as long as there is no room for it, the same step in micro-batches of half as many rows."""
        while True:
            self._updating, self._untouched, self._skipped = False, None, False
            try:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
                break
            except RunAgainError:
                pass
            except (RuntimeError, MemoryError) as error:
                if not self._updating or not out_of_memory(error):
                    raise
                said = first_line(error)
            if self._updating:
                self.shortage.update_again(optimizer.optimizer, self._untouched, said)
                break
            self.run_again()
        self._act()

    def _act(self) -> None:
        """Let the method act on the finished step while the gradients exist: before any callback could save it without that."""
        assert self.shortage.step is not None
        if self._skipped:  # by the scaler: infinite gradients say nothing of any weight
            for p in self.trained_parameters():
                if p.grad is not None:
                    p.grad.zero_()
        self.method.on_step(self.model, self.shortage.step.number)

    def run_again(self) -> None:
        """Begin the step anew, after it was agreed that there was no room for it."""
        self._micro = []
        self.zero_grad(set_to_none=True)
        self.shortage.again()
        assert self.shortage.step is not None
        torch.manual_seed(self._dropout_seed(self.shortage.step.number))

    def _micro_loss(self, batch: Batch, step: Step) -> Tensor:
        """This micro-batch's part of the step's loss, times the number of ranks because DDP and FSDP2 average gradients."""
        batch = self.objective.prepare(self.model, batch)
        smoothing = {"label_smoothing": self.config.label_smoothing} if self.config.label_smoothing else {}
        with contextlib.nullcontext() if self.noise is None else self.noise.on(batch):
            output = self.objective(self.model, batch, **smoothing)
        loss = torch.zeros((), device=self.device)
        for name, term in output.terms.items():
            loss = loss + term.weight * term.sum / step.totals[term.per]
            count = torch.as_tensor(term.count, dtype=torch.float64, device="cpu" if isinstance(term.count, float) else None)
            before = self.counted.get((name, term.per), torch.zeros_like(count))
            self.counted[name, term.per] = before + count.detach()
        for name, term in output.logs.items():
            found = tuple(torch.as_tensor(value, dtype=torch.float32).detach() for value in (term.sum, term.count))
            sums = self.logged.get(name, (torch.zeros_like(found[0]), torch.zeros_like(found[1])))
            self.logged[name] = sums[0] + found[0], sums[1] + found[1]
        self._micro.append((loss.detach(), batch))
        return loss * self.data_place[1]

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the gradient norm, refuse a step that is not finite, and clip.

        Raises:
            TrainingError: loss or gradient is NaN or infinite; names the rows. Every rank sees the same averaged
                gradients, so all of them stop here and none is left waiting.
        """
        self.settle()
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if self.shards is not None:
            self.shards.finish_gradients()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves that to optimisers that can do it in their step, which is later
        self.grad_norm = optim.grad_norm(params).detach()
        if scaler is None and Doubt.can_wait(optimizer, params):
            self._doubt = Doubt(optimizer, self.grad_norm, self._micro, self.global_step)
        elif not torch.isfinite(self.grad_norm):
            here = sum(not torch.isfinite(loss) for loss, _ in self._micro)
            bad = float(summed(self, torch.tensor(float(here)))) > 0  # of all ranks, which stop or go on together
            if not bad and scaler is not None and scaler.get_scale() > 1:
                self._skipped = True
                return  # fp16 finds its scale that way: the scaler skips this step and halves it
            raise TrainingError(not_finite(self.model, self._micro, self.global_step))
        if self.config.max_grad_norm:
            optim.clip(params, self.grad_norm, self.config.max_grad_norm)
        self._updating = True
        if not optimizer.state and scaler is None:  # a scaler would have to be asked again what it makes of the gradients
            self._untouched = Untouched(optimizer)

    def settle(self) -> None:
        """Learn how the last step went, if that is not known yet: before the next one, a log line, a save and the end.

        Raises:
            TrainingError: its loss or gradient was not finite, and the optimiser left everything as it was.
        """
        doubt, self._doubt = self._doubt, None
        if doubt is not None and not doubt.finite():
            raise TrainingError(not_finite(self.model, doubt.micro, doubt.step))

    def on_train_end(self) -> None:
        """Learn how the last step went."""
        self.settle()

    # ---- validation ---------------------------------------------------------------------------------------------

    def make_validation(self) -> Validation:
        """The sums of a validation, before its first batch."""
        return OwnTerms(self.objective) if self.objective.measures else Likelihoods(self.sources)

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._validation = self.make_validation()

    def validation_step(self, batch: Batch, index: int) -> None:
        """Add the batch."""
        self._validation.add(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured over the whole set, on all ranks alike."""
        sums = summed(self, self._validation.sums.to(self.device, torch.float64))
        for name, value in self._validation.values(sums).items():
            # Not to the loggers: Lightning would write it one step early; the Recorder writes it.
            self.log(name, value, prog_bar=name == LOSS, logger=False, rank_zero_only=False)

    # ---- optimiser ----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimiser over the method's groups, and a schedule over steps that we counted ourselves."""
        own = self.method.param_groups(self.model, self.learning_rate)
        decay = self.config.weight_decay
        groups = optim.param_groups(self.model, decay) if own is None else optim.decayed(self.model, own, decay)
        groups = optim.alike(groups)
        options = dict(self.optimizer_options)
        if options.get("differentiable"):
            raise UsageError("Expected --optimizer.differentiable false, as no gradient is taken of updates; got true.")
        if "foreach" not in options:  # the other way to update all at once
            options = {**optim.fused(self.optimizer_class, in_parts=self.shards is not None), **options}

        def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return self.optimizer_class(groups, lr=self.learning_rate, **options)  # type: ignore[call-arg]  # every torch optimiser has lr

        try:
            optimizer = MasterWeights(make, groups) if self.config.master_weights == "split" else make(groups)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"Optimiser {self.optimizer_class.__name__} refused its options: {error}.") from error
        c = self.config
        factor = optim.multiplier(
            c.lr_scheduler, self.total_steps, c.warmup, cycles=c.lr_cycles, decay=c.lr_decay, shape=c.lr_decay_shape,
            least=c.lr_min,
        )  # fmt: skip
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The model goes into the folder in its own format; Lightning's dictionary needs none of it."""
        self.settle()
        checkpoint["state_dict"] = {}
        checkpoint["method"] = self.method.training_state(self.model)
        checkpoint["parts"] = self.shortage.parts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the trained weights back, from the model files of the checkpoint's folder."""
        folder: Path = checkpoint.pop("folder")
        load_trained(self.model, self.method, folder)
        self.shortage.go_on(checkpoint.pop("parts", 1))
        self.method.load_training_state(self.model, checkpoint.pop("method", {}))
