"""A whole training step of the product on a model that holds no data: the worst moment of each of its stages.

Everything is the run's own code: the method is attached, the checks at the start are made, the objective takes its way through
the model and the output layer, the optimiser makes its state. Two models with few layers are rehearsed; as the layers of a
stack are alike, what a layer adds is the difference, and a model of any depth follows.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_ft.engine import last_layer
from lightning_ft.engine.cross_entropy import default_chunk
from lightning_ft.engine.head import HeadPath, head_module, head_path, take_path
from lightning_ft.engine.model import base_model, decoder_layers
from lightning_ft.engine.packing import check_packing
from lightning_ft.engine.verify import verify_head
from lightning_ft.errors import UsageError
from lightning_ft.master import MasterWeights
from lightning_ft.module import FineTuner
from lightning_ft.optim import clip, grad_norm
from lightning_ft.types import IGNORE_INDEX
from lightning_ft_plan.fewbits import quantise
from lightning_ft_plan.gpu import ways_of_a_gpu
from lightning_ft_plan.hollow import ACTIVATIONS, GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS, Hollow
from lightning_ft_plan.scene import PACKING, START, VALIDATION, Account, Scene, build, count
from lightning_ft_plan.stand_ins import stand_ins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.method import Method
    from lightning_ft.quantization import Quantization
    from lightning_ft.run.hardware import Formats
    from lightning_ft.types import Batch, Step

LOOSE = 2.0
"""Tolerance of the checks at the start: tensors without data do not agree."""


def packing(scene: Scene, longest: int) -> dict[int, int]:
    """What the check of packed rows takes, with weights of two and of four bytes; nothing where documents cannot share rows.

    Whether they can is told by the architecture alone: whether its attention is ours, not whether that is exact.

    Args:
        scene: What all methods have in common.
        longest: Tokens of the longest row.
    """
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        with stand_ins(), Hollow() as hollow:
            model = build(scene, scene.period, dtype)
            _own(hollow, model)
            with hollow.window(PACKING):
                check = check_packing(model, None, LOOSE, longest=longest)
        if not check.ok or check.way != "documents":
            return {}
        found[dtype.itemsize] = sum(size for part, size in hollow.peaks[PACKING].items() if part != WEIGHTS)
    return found


def plain_head(scene: Scene) -> HeadPath:
    """The way of the model's loss before any method changes it."""
    with stand_ins(), Hollow():
        return head_path(build(scene, scene.period, torch.bfloat16))


def rehearse(
    scene: Scene, method: Method, formats: Formats, step: Step, validation: Batch | None, depth: int, *,
    stored: Quantization | None = None,
) -> Account:  # fmt: skip
    """A step of the run, with so many layers.

    Args:
        scene: What all methods have in common.
        method: What trains.
        formats: Number formats.
        step: The step with the largest micro-batch, that one first.
        validation: The largest validation batch; None: none.
        depth: Number of layers.
        stored: How the linear layers of the base are quantised; None: they are plain.
    """
    hollow = Hollow()
    with stand_ins(), hollow:
        model = build(scene, depth, formats.weights)
        _own(hollow, model)
        parameters, linear = sum(p.numel() for p in model.parameters()), _linear_layers(model)
        widest = max((layer.weight.numel() for layer in linear), default=0)
        if stored is not None:
            quantise(linear, stored, hollow)
            # As the loader marks it: methods refuse, or do, other things on such a base.
            model.is_quantized, model.is_loaded_in_8bit = True, stored.quantize == "int8"
            model.is_loaded_in_4bit = stored.quantize != "int8"
        module = FineTuner(
            scene.config, method, scene.objective, scene.optimizer, scene.optimizer_options, scene.total_steps, lambda: model
        )
        module.configure_model()
        _own(hollow, module.model)
        if scene.head is not None:
            take_path(module.model, scene.head)
        if method.trains_base:  # it keeps two sets of gradients; those of an adapter are small
            with hollow.window(START):
                verify_head(module.model, step.micro[0], LOOSE)
        head_path(module.model)
        # Recomputed, the worst moment is that of a whole layer, which is not the last one.
        last_layer.switch(module.model, on=not scene.config.gradient_checkpointing)
        _train(hollow, module, formats, step)
        flops, moved = hollow.flops, hollow.moved
        if validation is not None:
            module.eval()
            with hollow.window(VALIDATION), autocast(formats):
                module.make_validation().add(module.model, validation)
        found = sum(p.numel() for p in module.trained_parameters())
    windows = dict(hollow.peaks)
    if step.micro[0].documents is not None and scene.checks:
        windows[PACKING] = {WEIGHTS: windows["update"][WEIGHTS], ACTIVATIONS: scene.checks[formats.weights.itemsize]}
    return Account(found, parameters, widest, windows, flops, moved)


def _train(hollow: Hollow, module: FineTuner, formats: Formats, step: Step) -> None:
    """A step behind others: the optimiser has its state, and the micro-batches before the largest left gradients."""
    optimizer = module.configure_optimizers()["optimizer"]
    module.method.before_step(module.model, 0)
    trained = module.trained_parameters()
    for p in trained:
        p.grad = torch.ones_like(p)  # small ones are computed with, and whatever lies in memory may be no number
    optimizer.step()
    module.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                hollow.assign(value, OPTIMIZER)
    for half in optimizer.lower.values() if isinstance(optimizer, MasterWeights) else ():
        hollow.assign(half, OPTIMIZER)
    for p in trained if len(step.micro) > 1 else ():
        p.grad = torch.ones_like(p)
        hollow.assign(p.grad, GRADIENTS)
    for p in trained:
        hook: Any = p.register_post_accumulate_grad_hook
        hook(lambda q: hollow.assign(q.grad, GRADIENTS))
    hollow.flops = hollow.moved = 0
    step, given, missing = _thinned(step, module.model)
    with _watched(hollow, module.model, given, missing) as held, hollow.window("forward"), autocast(formats):
        loss = loss_of(module, step)
    with hollow.window("backward"), hollow.window("backward, top"):
        held.clear()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    with hollow.window("update"):
        clip(trained, grad_norm(trained), module.config.max_grad_norm or 1.0)
        optimizer.step()
    module.zero_grad(set_to_none=True)


def _own(hollow: Hollow, model: nn.Module) -> None:
    """All parameters and buffers are weights."""
    for tensor in (*model.parameters(), *model.buffers()):
        hollow.assign(tensor, WEIGHTS)


def _linear_layers(model: nn.Module) -> list[Any]:
    """All but the output head, GPT-2's kind of them included."""
    from transformers.pytorch_utils import Conv1D

    head = head_module(model)
    return [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]


def autocast(formats: Formats, device: str = "cpu") -> Any:
    """What Lightning does for these formats."""
    if formats.lightning == "32-true":
        return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16)  # float16 takes as much room and time


def loss_of(module: FineTuner, step: Step) -> Tensor:
    """The loss of the step's first micro-batch, as the module takes it backward."""
    batch = module.objective.prepare(module.model, step.micro[0])
    output = module.objective(module.model, batch)
    loss = torch.zeros((), device=batch.input_ids.device)
    for term in output.terms.values():
        loss = loss + term.weight * term.sum / step.totals[term.per]
    penalty = module.method.regularizer(module.model)
    return loss if penalty is None else loss + penalty


def _thinned(step: Step, model: nn.Module) -> tuple[Step, int, int]:
    """The step with no more supervised positions than the output layer takes at a time, their number, and that of the others.

    A chunk is like the next, and rehearsing all of them would take most of the time. On the ways without chunks nothing is
    left out.
    """
    batch, vocabulary = step.micro[0], int(base_model(model).config.get_text_config().vocab_size)
    where = (batch.labels != IGNORE_INDEX).flatten().nonzero()[:, 0]
    most = default_chunk(vocabulary, torch.device("cpu")) + len(batch.rows)  # the first token of a row is not predicted
    if head_path(model).name != "chunked" or len(where) <= most:
        return step, len(where), 0
    labels = batch.labels.flatten().clone()
    labels[where[most:]] = IGNORE_INDEX
    part = replace(batch, labels=labels.view_as(batch.labels))
    return replace(step, micro=(part, *step.micro[1:])), most, len(where) - most


@contextlib.contextmanager
def _watched(hollow: Hollow, model: nn.Module, given: int, missing: int) -> Iterator[list[Tensor]]:
    """Logits are told from activations, and the backward passes of the highest and of the lowest layer from the whole.

    What is alive in the backward pass of a stack is most either at its top, where all activations are, or at its bottom,
    where all gradients are; each of the two grows by the same with every layer, the greater of them does not.

    Args:
        hollow: Counts.
        model: Is run within the block.
        given: Supervised positions of the batch.
        missing: Those that were left out of it.

    Yields:
        What the positions that are left out hold until the backward pass: their hidden states and the gradients of these.
    """
    layers, held = decoder_layers(model), list[Tensor]()
    with contextlib.ExitStack() as stack:

        def on_gradient(value: Any, act: Any) -> None:
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(act)  # type: ignore[no-untyped-call]  # torch has no types for it

        def above(_: Any, args: Any, kwargs: Any) -> None:
            on_gradient(args[0] if args else kwargs.get("hidden_states"), lambda g: hollow.close("backward, top"))

        def below(_: Any, args: Any, out: Any) -> None:
            on_gradient(out[0] if isinstance(out, tuple) else out, lambda g: hollow.open("backward, bottom"))

        def behind(_: Any, args: Any, out: Any) -> None:
            if missing:
                held.append(out.logits.new_empty(2, missing, out.logits.shape[-1]))
            stack.enter_context(hollow.part(LOGITS))
            counted.extend((hollow.flops, hollow.moved))

        counted: list[int] = []
        handles = [model.register_forward_hook(behind)]
        if layers:
            handles.append(layers[-1].register_forward_pre_hook(above, with_kwargs=True))
            handles.append(layers[0].register_forward_hook(below))
        try:
            yield held
        finally:
            for handle in handles:
                handle.remove()
        if counted:
            hollow.flops += (hollow.flops - counted[0]) * missing // max(1, given)
            hollow.moved += (hollow.moved - counted[1]) * missing // max(1, given)


def account(
    scene: Scene, method: Method, formats: Formats, step: Step, validation: Batch | None, *, gpu: bool = False,
    stored: Quantization | None = None,
) -> Account:  # fmt: skip
    """The account of a step of the whole model, from two that are not as deep; arguments as of `rehearse`.

    With `gpu` it is that of a GPU, whose attention keeps nothing of the size of its scores.
    """
    if gpu:
        with ways_of_a_gpu():
            alike = replace(step, micro=(_undivided(step.micro[0]), *step.micro[1:]))
            return account(scene, method, formats, alike, validation, stored=stored)
    shallow, deep, whole = _depths(scene, method)
    if validation is not None and 2 * validation.input_ids.numel() < step.micro[0].input_ids.numel() * scene.depth:
        validation = None  # it keeps one layer at a time and cannot be the worst moment
    first = rehearse(scene, method, formats, step, validation, shallow, stored=stored)
    if deep == shallow:
        return first
    second = rehearse(scene, method, formats, step, None, deep, stored=stored)
    found = first.at(second, scene.depth, shallow, deep)
    return found if whole is None else replace(found, trainable=whole)


def _undivided(batch: Batch) -> Batch:
    """A packed row as one document: the CPU keeps scores of short documents only."""
    if batch.documents is None:
        return batch
    return replace(batch, documents=(0, batch.input_ids.shape[1]))


def _depths(scene: Scene, method: Method) -> tuple[int, int, int | None]:
    """Two depths by which the trained numbers of the whole model can be told, and these where they were counted.

    Methods that train base weights may choose among the layers (the upper half, a quarter of each kind, two at a time), and
    attaching them costs nothing; adapters stand beside every layer alike.
    """
    period, depth = scene.period, scene.depth
    if depth <= 2 * period:
        return depth, depth, None
    if not method.trains_base:
        return period, 2 * period, None
    whole = count(scene, method, depth)
    pairs = [(n * period, 2 * n * period) for n in (1, 2, 4) if 2 * n * period <= depth]
    for shallow, deep in pairs:
        try:
            few, many = count(scene, method, shallow), count(scene, method, deep)
        except UsageError:  # more layers are to train than so shallow a model has
            continue
        if few + (many - few) * (depth - shallow) / (deep - shallow) == whole:
            return shallow, deep, whole
    return (*pairs[-1], whole)
