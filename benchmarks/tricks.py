"""Exact tricks of the hot path, each switched on and off in turn in one process: what a step takes, and whether it is the same.

`python -m benchmarks.tricks SETTING OUT TRICK SHARE`. A step is forward and backward pass through one packed row of `tokens`
tokens in documents of `row_tokens`; LoRA on all linear layers. SHARE is the part of a document that the trick is about.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import generated
from benchmarks.setting import Setting, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from lightning_ft.types import Batch

WARM = 3
"""Steps of each kind before those that count."""


def build(options: dict[str, Any], data: Path | None, folder: Path) -> Setting:
    """Write a setting folder without rows: those follow from the share.

    Args:
        options: the suite's `setting`.
        data: not looked at; every builder is called with it.
        folder: what is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return write(options, generated.model(options, generated.word_tokenizer(options["vocab_size"]), folder), {}, folder)


def packed(options: dict[str, Any], *, prefix: float = 0.0, answer: float = 0.3, tail: float = 0.0, cut: bool = False) -> Batch:
    """One packed row of random tokens.

    Args:
        options: of the setting.
        prefix: part of each document that is the same in all.
        answer: part of it that is supervised.
        tail: part of it behind the answer.
        cut: leave that out.
    """
    import torch

    from lightning_ft.data.collate import pack
    from lightning_ft.data.targets import found_ahead
    from lightning_ft.types import IGNORE_INDEX, Encoded

    length = options["row_tokens"]
    alike, end = round(prefix * length), length - round(tail * length)
    begin = end - round(answer * length)
    draw = torch.Generator().manual_seed(options["seed"])
    common = torch.randint(options["vocab_size"], (alike,), generator=draw).tolist()
    rows = []
    for number in range(options["tokens"] // length):
        ids = [*common, *torch.randint(options["vocab_size"], (length - alike,), generator=draw).tolist()]
        labels = [IGNORE_INDEX] * begin + ids[begin:end] + [IGNORE_INDEX] * (length - end)
        rows.append(Encoded(ids[: end if cut else length], labels[: end if cut else length], f"row:{number}"))
    return found_ahead(pack(rows))


def prepared(setting: Setting) -> nn.Module:
    """The model with its adapter, as `fit` trains it."""
    import torch
    from transformers import AutoModelForCausalLM

    from lightning_ft.engine.gated import fuse_gates, fuse_rotations
    from lightning_ft.engine.norm import fuse_norms
    from lightning_ft.registry import registry

    options = setting.options
    base: Any = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.bfloat16)
    torch.manual_seed(options["seed"])
    lora: Any = registry().methods["lora"].cls
    model: nn.Module = lora(rank=options["rank"], alpha=options["alpha"]).attach(base, options["steps"])
    for fuse in (fuse_norms, fuse_gates, fuse_rotations):
        fuse(model)
    return model.train()


def last_layer(model: nn.Module, options: dict[str, Any], share: float) -> Callable[[bool], Batch]:
    """The last layer's MLP and output projection at supervised positions only; the last `share` is supervised."""
    from lightning_ft.engine import last_layer as trick
    from lightning_ft.engine.verify import verify_last_layer

    batch = packed(options, answer=share)
    if not verify_last_layer(model, batch):
        raise RuntimeError("Expected the model to allow it; its losses differ.")

    def switched(on: bool) -> Batch:
        trick.switch(model, on=on)
        return batch

    return switched


def prefix(model: nn.Module, options: dict[str, Any], share: float) -> Callable[[bool], Batch]:
    """What all documents begin with computed once; it is their first `share`."""
    from lightning_ft.data.prefix import share as shared
    from lightning_ft.engine.verify import verify_shared

    tokens = round(share * options["row_tokens"])
    if verify_shared(model, tokens, options["vocab_size"]) is None:
        raise RuntimeError("Expected the model to allow it; its losses differ.")
    batches = {True: shared(packed(options, prefix=share), tokens), False: packed(options, prefix=share)}
    return batches.__getitem__


def tail(model: nn.Module, options: dict[str, Any], share: float) -> Callable[[bool], Batch]:
    """Tokens behind the last supervised one left out; they are the last `share`. `fit` does not do it."""
    batches = {on: packed(options, tail=share, cut=on) for on in (True, False)}
    return batches.__getitem__


def ours(name: str, model: nn.Module, options: dict[str, Any], share: float) -> Callable[[bool], Batch]:
    """Kernels of our own, all (`on_cpu`) or those that take matrix units (`matrix`); the last `share` is supervised."""
    from lightning_ft.engine import kernels

    batch, found = packed(options, answer=share), getattr(kernels, name)
    if found(batch.input_ids.bfloat16()) is None:
        raise RuntimeError("Expected a C compiler and, for `matrix`, matrix units; found none that work.")

    def switched(on: bool) -> Batch:
        setattr(kernels, name, found if on else lambda *tensors: None)
        return batch

    return switched


TRICKS: dict[str, Callable[[nn.Module, dict[str, Any], float], Callable[[bool], Batch]]] = {
    "native": partial(ours, "on_cpu"),
    "matrix": partial(ours, "matrix"),
    "last_layer": last_layer,
    "prefix": prefix,
    "tail": tail,
}


def step(model: nn.Module, batch: Batch) -> tuple[float, Tensor, float]:
    """Seconds, loss per token, and norm of the gradient of a step."""
    import torch

    from lightning_ft.engine.loss import token_loss

    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    total, count = token_loss(model, batch)
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    seconds = time.perf_counter() - began
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return seconds, loss.detach(), float(norm)


def main() -> None:
    """Measure and write `measure.json`."""
    from lightning_ft.run.heap import keep_heap

    setting, out = Setting.load(sys.argv[1]), Path(sys.argv[2])
    trick, share = sys.argv[3], float(sys.argv[4])
    keep_heap()
    model = prepared(setting)
    switched = TRICKS[trick](model, setting.options, share)
    found: dict[bool, list[tuple[float, Tensor, float]]] = {True: [], False: []}
    for _ in range(WARM + setting.options["steps"]):
        for kind in (True, False):
            found[kind].append(step(model, switched(kind)))
    on, off = ([seconds for seconds, _, _ in found[kind][WARM:]] for kind in (True, False))
    losses, norms = ([found[kind][-1][which] for kind in (True, False)] for which in (1, 2))
    measure = {
        "on_s": statistics.median(on), "off_s": statistics.median(off),
        "on_over_off": statistics.median(a / b for a, b in zip(on, off, strict=True)),
        "loss_difference": abs(float(losses[0] - losses[1])), "norm_difference": abs(norms[0] / norms[1] - 1),
    }  # fmt: skip
    (out / "measure.json").write_text(json.dumps(measure) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
