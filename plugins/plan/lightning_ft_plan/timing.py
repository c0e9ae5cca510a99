"""Seconds of a step: a small one of the real architecture is measured, the others follow by what they compute and move."""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.errors import out_of_memory
from lightning_ft.module import FineTuner
from lightning_ft.optim import clip, grad_norm
from lightning_ft.run.heap import keep_heap
from lightning_ft.types import Batch, Step
from lightning_ft_plan.rehearsal import autocast, loss_of, rehearse
from lightning_ft_plan.scene import build

if TYPE_CHECKING:
    from lightning_ft.method import Method
    from lightning_ft.run.hardware import Formats
    from lightning_ft_plan.scene import Account, Scene

MOST_FLOPS = 1.2e10
"""Of a measured step: a tenth of a second on a few cores."""
MOST_VOCABULARY = 8192
"""Of a measured model, whose output layer must not be most of it."""
MOST_BYTES = 2 * 10**9
"""Of weights, gradients and optimiser state of a measured model."""
LEAST_TOKENS = 256
"""Of a measured step, where the run has as many: with fewer, reading the weights is what takes the time."""
_PRODUCT = (256, 2048, 2048)
"""Rows, depth and columns of the matrix product that is measured where no layer of the model can be."""


@dataclass(frozen=True)
class Speed:
    """What the machine does in a step with one set of number formats."""

    flops: float
    """Per second, in matrix products."""
    bandwidth: float
    """Bytes per second that operators read and write."""
    said: str
    """What was measured, for the reader."""

    def seconds(self, account: Account, share: float) -> float:
        """Of a step with `share` times the tokens of the account's."""
        return share * (account.flops / self.flops + account.moved / self.bandwidth)


def measure(scene: Scene, method: Method, formats: Formats, step: Step, account: Account, device: torch.device) -> Speed:
    """Time a step of as few layers as the architecture repeats, with a cut vocabulary and so many tokens that it is short."""
    if device.type == "cpu":
        keep_heap()  # as a run does, or every tensor would be pages that the kernel has to make first
    small, bandwidth, tokens = _small(scene), _bandwidth(device), step.micro[0].input_ids.numel()
    flops = account.flops * small.period / scene.depth
    base = "training base weights" if method.trains_base else "on a frozen base"
    affordable = min(tokens, int(tokens * MOST_FLOPS / max(1.0, flops)))
    held = account.parameters * small.period / scene.depth * (16 if method.trains_base else formats.weights.itemsize)
    why = "one layer of this model is too large to be tried"
    if affordable >= min(tokens, LEAST_TOKENS) and held <= MOST_BYTES:
        cut = _cut(step, affordable, device)
        try:
            seconds = _seconds(small, method, formats, cut, device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            counted = rehearse(small, method, formats, cut, None, small.period)
            # What moving costs is known; the rest of the time is the products'.
            busy = max(0.3 * seconds, seconds - counted.moved / bandwidth)
            layers = f"{small.period} of {scene.depth} layers" if small.period < scene.depth else "all layers"
            size = f"{layers} of this architecture with {cut.micro[0].input_ids.numel()} tokens"
            if counted.flops:
                return Speed(counted.flops / busy, bandwidth, f"{base} a step of {size} took {seconds:.2f} s")
            why = "a step of this model is too small to be counted"
    dtype = formats.weights if formats.lightning == "32-true" else torch.bfloat16
    rate = _product_rate(dtype, device)
    return Speed(rate, bandwidth, f"{base} matrix products run at {rate / 1e9:.0f} GFLOP/s; {why}")


def _small(scene: Scene) -> Scene:
    config = copy.deepcopy(scene.model_config)
    text = config.get_text_config()
    text.vocab_size = min(text.vocab_size, MOST_VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)  # they may lie beyond the cut
    return replace(scene, model_config=config)


def _cut(step: Step, tokens: int, device: torch.device) -> Step:
    """About so many of the first tokens of the largest micro-batch; token ids are 0."""
    batch = step.micro[0]
    length = batch.input_ids.shape[1]
    together, width = batch.together, min(length, tokens)
    rows = 1 if batch.documents is not None else max(together, tokens // length // together * together)
    labels = batch.labels[:rows, :width].clamp(max=0)
    documents, lengths = None, (width,) * rows
    if batch.documents is not None:
        borders = [*(border for border in batch.documents if border < width), width]
        while (len(borders) - 1) % together:  # what belongs together is whole
            borders[1:-1] = borders[1:-2] if len(borders) > 2 else [width // 2]
        documents, lengths = tuple(borders), tuple(b - a for a, b in itertools.pairwise(borders))
    if not bool((labels >= 0).any()):
        labels = torch.zeros_like(labels)
    ids, names = torch.zeros_like(labels), tuple(map(str, range(len(lengths))))
    part = Batch(
        ids, labels, batch.position_ids[:rows, :width].clone(), documents, names, lengths=lengths, together=together,
        reference=None if batch.reference is None else torch.zeros(len(names)),
    )  # fmt: skip
    return Step(0, (part.to(device),), {name: max(1.0, total) for name, total in step.totals.items()})


def _seconds(scene: Scene, method: Method, formats: Formats, step: Step, device: torch.device) -> float:
    """The second of two equal steps, as the first compiles kernels."""
    with torch.device("meta"):
        model = build(scene, scene.period, formats.weights)
    model.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    module = FineTuner(
        scene.config, method, scene.objective, scene.optimizer, scene.optimizer_options, scene.total_steps, lambda: model
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        module.configure_model()
        module.to(device)
        optimizer = module.configure_optimizers()["optimizer"]
        trained = module.trained_parameters()
        seconds = 0.0
        for _ in range(2):
            begin = time.perf_counter()
            module.zero_grad(set_to_none=True)
            with autocast(formats, device.type):
                loss = loss_of(module, step)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            clip(trained, grad_norm(trained), 1.0)
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
    return seconds


def _bandwidth(device: torch.device) -> float:
    """Bytes per second of adding two arrays that no cache holds."""
    a, b = (torch.ones(8 * 2**20, device=device) for _ in range(2))
    a.add_(b)
    return 3 * a.nbytes / _least(lambda: a.add_(b), device)


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    rows, depth, columns = _PRODUCT
    a, b = torch.ones(rows, depth, dtype=dtype, device=device), torch.ones(depth, columns, dtype=dtype, device=device)
    a @ b
    return 2 * rows * depth * columns / _least(lambda: a @ b, device)


def _least(call: Any, device: torch.device) -> float:
    """Seconds of the fastest of three calls."""
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return max(min(found), 1e-9)
