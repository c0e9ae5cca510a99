"""The contract of a fine-tuning method as clauses, each run on tiny models of two families.

The loss here is the plain one, from full logits: the kit judges methods without the product's own engine.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from lightning_ft.backbone import quiet_peft
from lightning_ft.engine.recompute import checkpoint_activations
from lightning_ft.errors import NotMergeableError, UsageError
from lightning_ft.testing.clauses import options_documented, require, run_clauses
from lightning_ft.testing.models import FAMILIES, Family, tiny_model

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_ft.method import Method

STEPS = 12
LEARNING_RATE = 1e-2
TOLERANCE = 1e-5
"""Between two float32 ways to the same logits, which are of size 1 to 10."""


Base = Callable[[Family], nn.Module]
"""Makes a tiny model of a family: `tiny_model`, or one whose weights are stored in another way."""


def inputs() -> Tensor:
    """(2, 24) token ids, the same at every call."""
    return torch.randint(32, 200, (2, 24), generator=torch.Generator().manual_seed(7))


def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    """(B, T, V) float32 logits in evaluation mode, without gradient."""
    training = model.training
    model.eval()
    with torch.no_grad():
        ids = inputs() if ids is None else ids
        out: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    model.train(training)
    return out[:, -ids.shape[1] :]  # a soft prompt's own positions come first


def plain_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of every token but the first, from full logits."""
    out = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]
    return functional.cross_entropy(out[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@dataclass
class Trained:
    """A tiny model that was trained with a method, and what was seen on the way."""

    method: Method
    family: Family
    model: nn.Module
    base_logits: Tensor
    first_logits: Tensor
    """After `attach`, before the first step."""
    losses: list[float]
    moved: set[str]
    """Trainable parameters that had a non-zero gradient in one of the first two steps."""
    lacking: set[str]
    """Trainable parameters without a finite gradient in one of the first two steps."""
    frozen: dict[str, tuple[Tensor, Tensor]]
    """Frozen tensors: as they were after `attach`, and after training."""
    base: Base
    """Makes the model that the method was attached to."""

    @property
    def subject(self) -> str:
        """How messages name it."""
        return f"method {self.method.name} on {self.family}"


def attach(method: Method, family: Family, *, total_steps: int = STEPS, base: Base = tiny_model) -> nn.Module:
    """The method on a fresh tiny model, new weights drawn from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return method.attach(base(family), total_steps)


def train(method: Method, family: Family, base: Base = tiny_model) -> Trained:
    """Train for a few steps of AdamW on one batch; the global generator is left as it was."""
    base_logits = logits(base(family))
    model = attach(method, family, base=base).train()
    first_logits = logits(model)
    frozen = {n: t for n, t in [*model.named_parameters(), *model.named_buffers()] if not t.requires_grad}
    trains = any(p.requires_grad for p in model.parameters())
    require("gradients", f"method {method.name} on {family}", trains, "no parameter requires a gradient after attach")
    before = {name: tensor.detach().clone() for name, tensor in frozen.items()}
    everything = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    groups = method.param_groups(model, LEARNING_RATE) or everything
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0)
    losses: list[float] = []
    moved: set[str] = set()
    lacking: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for step in range(STEPS):
            for resting in method.before_step(model, step):
                optimizer.state.pop(resting, None)
            loss = plain_loss(model, inputs())
            losses.append(loss.item())
            extra = method.regularizer(model)
            optimizer.zero_grad()
            (loss if extra is None else loss + extra).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if step < 2:
                trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
                moved |= {n for n, p in trainable.items() if p.grad is not None and p.grad.any()}
                lacking |= {n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()}
            optimizer.step()
            method.on_step(model, step)
    return Trained(
        method, family, model.eval(), base_logits, first_logits, losses, moved, lacking,
        {name: (before[name], tensor.detach()) for name, tensor in frozen.items() if not tensor.requires_grad}, base,
    )  # fmt: skip


def adapter_of(model: nn.Module) -> bool:
    """Whether peft made the model."""
    return hasattr(model, "peft_config")


def clause_options(run: Trained) -> None:
    """Its options are a frozen dataclass with documented fields."""
    options_documented(type(run.method))


def clause_start(run: Trained) -> None:
    """The attached model computes what the base does, unless `starts_as_base` is False."""
    gap = (run.first_logits - run.base_logits).abs().max().item()
    says = "declare starts_as_base = False" if run.method.starts_as_base else "starts_as_base = False is not true"
    same = gap <= TOLERANCE
    require(
        "start", run.subject, same == run.method.starts_as_base, f"before the first step logits differ by {gap:.1e}; {says}"
    )


def clause_gradients(run: Trained) -> None:
    """Something trains, and every trainable parameter gets a finite gradient that is not always zero."""
    trainable = {name for name, p in run.model.named_parameters() if p.requires_grad}
    require("gradients", run.subject, not run.lacking, f"no finite gradient reaches {sorted(run.lacking)[:3]}")
    idle = sorted(trainable - run.moved)
    require("gradients", run.subject, not idle, f"the gradient is zero in both of two steps for {idle[:3]}")


def clause_frozen(run: Trained) -> None:
    """What does not require a gradient is unchanged bit for bit by training."""
    changed = [name for name, (before, after) in run.frozen.items() if not torch.equal(before, after)]
    require("frozen", run.subject, not changed, f"training changed {changed[:3]}, which require no gradient")
    if not run.method.trains_base:
        some = any(not p.requires_grad for p in run.model.parameters())
        require("frozen", run.subject, some, "it trains every weight, so it must declare `trains_base`")


def clause_loss(run: Trained) -> None:
    """The loss falls on a batch seen over and over."""
    first, last = run.losses[0], run.losses[-1]
    require("loss", run.subject, last < first, f"after {STEPS} steps on one batch it went from {first:.4f} to {last:.4f}")
    changed = not torch.allclose(logits(run.model), run.base_logits, atol=TOLERANCE)
    require("loss", run.subject, changed, "the trained model's logits are those of the base model")


def clause_reload(run: Trained) -> None:
    """Saved and loaded by peft (adapters) or transformers alone, the logits are equal."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as folder, quiet_peft():
        fresh: Any = run.base(run.family)
        fresh.save_pretrained(base)
        if adapter_of(run.model):
            from peft import AutoPeftModelForCausalLM

            for config in run.model.peft_config.values():  # type: ignore[operator]  # a PeftModel's dict
                config.base_model_name_or_path = base
            run.model.save_pretrained(folder)  # type: ignore[operator]  # PeftModel's
            loaded: nn.Module = AutoPeftModelForCausalLM.from_pretrained(folder)
        else:
            merged = run.method.merge(train(run.method, run.family, run.base).model)  # merging may use up the model
            merged.save_pretrained(folder)  # type: ignore[operator]  # PreTrainedModel's
            loaded = AutoModelForCausalLM.from_pretrained(folder)
        gap = (logits(loaded) - logits(run.model)).abs().max().item()
    require("reload", run.subject, gap <= TOLERANCE, f"logits after loading differ by {gap:.1e}")


def clause_state(run: Trained) -> None:
    """`trainable_state` goes into a fresh model bit for bit, and a foreign name is refused."""
    state = {name: tensor.clone() for name, tensor in run.method.trainable_state(run.model).items()}
    require("state", run.subject, bool(state), "trainable_state is empty")
    fresh = attach(run.method, run.family, base=run.base)
    run.method.load_trainable_state(fresh, state)
    run.method.load_training_state(fresh, {n: t.clone() for n, t in run.method.training_state(run.model).items()})
    back = run.method.trainable_state(fresh)
    require("state", run.subject, back.keys() == state.keys(), f"names differ: {sorted(back.keys() ^ state.keys())[:3]}")
    for name, tensor in state.items():
        equal = back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
        require("state", run.subject, equal, f"{name} is not the same bit for bit after loading")
    gap = (logits(fresh) - logits(run.model)).abs().max().item()
    require("state", run.subject, gap <= TOLERANCE, f"logits after loading differ by {gap:.1e}")
    try:
        run.method.load_trainable_state(fresh, {**state, "no.such.parameter": torch.zeros(1)})
    except ValueError:
        return
    require("state", run.subject, False, "a state with a foreign name was taken without a ValueError")


def clause_reference(run: Trained) -> None:
    """`reference` is the model before training, inside the block only; a method that trains the base may decline."""
    tuned = logits(run.model)
    try:
        with run.method.reference(run.model) as reference:
            gap = (logits(reference) - run.base_logits).abs().max().item()
    except NotImplementedError:
        require("reference", run.subject, run.method.trains_base, "only methods with `trains_base` may leave it out")
        return
    require("reference", run.subject, gap <= TOLERANCE, f"inside the block, logits differ from the base by {gap:.1e}")
    require("reference", run.subject, torch.equal(logits(run.model), tuned), "after the block, the tuned model is not back")


def clause_merge(run: Trained) -> None:
    """The merged model is plain and gives the same logits, or `NotMergeableError` says that there is none."""
    from transformers import PreTrainedModel

    other = train(run.method, run.family, run.base).model  # merging may use up the model
    tuned = logits(other)
    try:
        merged = run.method.merge(other)
    except NotMergeableError:
        return
    require("merge", run.subject, isinstance(merged, PreTrainedModel), f"merge returned a {type(merged).__name__}")
    plain = run.base(run.family).state_dict().keys()
    odd = sorted(merged.state_dict().keys() ^ plain)
    require("merge", run.subject, not odd, f"parameters of the merged model are not the base's: {odd[:3]}")
    gap = (logits(merged) - tuned).abs().max().item()
    require("merge", run.subject, gap <= TOLERANCE, f"logits of the merged model differ by {gap:.1e}")


def clause_checkpointing(run: Trained) -> None:
    """Activation checkpointing leaves the gradients as they are, unless `can_checkpoint` is False."""
    if not run.method.can_checkpoint:
        return
    gradients: list[dict[str, Tensor]] = []
    for on in (False, True):
        model = attach(run.method, run.family, base=run.base).train()
        run.method.load_trainable_state(model, run.method.trainable_state(run.model))
        if on:
            checkpoint_activations(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            plain_loss(model, inputs()).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    require("checkpointing", run.subject, plain.keys() == recomputed.keys(), "other parameters get a gradient with it")
    for name, gradient in plain.items():
        equal = torch.allclose(gradient, recomputed[name], atol=1e-6, rtol=1e-4)
        require("checkpointing", run.subject, equal, f"the gradient of {name} changes; declare can_checkpoint = False")


def clause_packing(run: Trained) -> None:
    """Two documents in one row, told apart by restarting positions, are as two rows, unless `can_pack` is False."""
    if not run.method.can_pack:
        return
    first, second = inputs()[:1, :10], inputs()[1:, :14]
    positions = torch.cat([torch.arange(10), torch.arange(14)])[None]
    run.model.eval()
    with torch.no_grad():
        row = run.model(input_ids=torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    apart = torch.cat([logits(run.model, first), logits(run.model, second)], 1)
    gap = (row - apart).abs().max().item()
    require("packing", run.subject, gap <= TOLERANCE, f"packed documents differ by {gap:.1e}; declare can_pack = False")


def clause_precision(run: Trained) -> None:
    """On a bfloat16 base a step works under autocast, and what trains beside the base is float32."""
    model = run.method.attach(run.base(run.family).to(torch.bfloat16), STEPS).train()
    if not run.method.trains_base:
        low = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
        require("precision", run.subject, not low, f"on a bfloat16 base these do not train in float32: {low[:3]}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = plain_loss(model, inputs())
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    require("precision", run.subject, bool(loss.isfinite()), "the loss on a bfloat16 base is not finite")
    if not run.method.trains_base:
        try:
            merged = run.method.merge(model)
        except NotMergeableError:
            return
        high = [name for name, p in merged.named_parameters() if p.dtype != torch.bfloat16]
        require("precision", run.subject, not high, f"merged into a bfloat16 base these are of another type: {high[:3]}")


METHOD_CLAUSES: dict[str, Callable[[Trained], None]] = {
    "options": clause_options,
    "start": clause_start,
    "gradients": clause_gradients,
    "frozen": clause_frozen,
    "loss": clause_loss,
    "state": clause_state,
    "reference": clause_reference,
    "packing": clause_packing,
    "checkpointing": clause_checkpointing,
    "precision": clause_precision,
    "reload": clause_reload,
    "merge": clause_merge,
}
"""Every clause of the contract, by the name that messages give it."""


@functools.lru_cache(maxsize=8)
def _trained(key: str, family: Family, method: _ByKey) -> Trained | UsageError:
    try:
        return train(method.method, family)
    except UsageError as error:
        return error


class _ByKey:
    """A method in a cache key that is not asked for its hash, as options may be lists."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def __eq__(self, other: object) -> bool:
        # Classes of the same name may come from two modules or two calls of one function.
        return isinstance(other, _ByKey) and type(other.method) is type(self.method)

    def __hash__(self) -> int:
        return 0


def trained(method: Method | type[Method], family: Family) -> Trained | UsageError:
    """The method trained on a tiny model (once, then cached), or the `UsageError` with which it refuses the family."""
    made = method() if isinstance(method, type) else method
    return _trained(repr(made), family, _ByKey(made))


def check_method(method: Method | type[Method], families: tuple[Family, ...] = FAMILIES) -> tuple[Family, ...]:
    """Every clause of the method contract, on every family that the method does not refuse.

    Args:
        method: an instance, or a class that is taken with its defaults.
        families: tiny models to try; one that `attach` refuses with a `UsageError` is left out.

    Returns:
        The families on which it keeps the contract, so that a test can say which ones these have to be.

    Raises:
        AssertionError: a clause is broken (named in the message), or all families are refused.
    """
    runs = [trained(method, family) for family in families]
    accepted = [run for run in runs if isinstance(run, Trained)]
    name = getattr(method, "name", repr(method))
    require("families", f"method {name}", bool(accepted), f"it refuses all of {', '.join(families)}: {runs[0]}")
    for run in accepted:
        run_clauses(METHOD_CLAUSES, run)
    return tuple(run.family for run in accepted)
