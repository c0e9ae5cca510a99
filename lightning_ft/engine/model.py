"""What all of the hot path asks a model: what is below its wrappers, its layers, a class with another forward."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def unwrapped(model: nn.Module) -> nn.Module:
    """The model below torch.compile and data-parallel wrappers; peft's wrapper stays."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def base_model(model: nn.Module) -> Any:
    """The transformers model itself, below peft too."""
    inner: Any = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def reshard(model: nn.Module) -> None:
    """Let `model.parameters()` be the optimiser's parameters again under FSDP2.

    A forward pass without a backward pass leaves the root's parameters gathered: other objects, whose `.grad` is nobody's.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode for the length of a `with` block; afterwards in the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """`evaluating` without gradients, which leaves random numbers and shards as they were: for looks before training."""
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            reshard(model)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's decoder layers, bottom first; none where there is no such list.

    Lists inside a layer (experts) may have the same length by chance; the outermost comes first.
    """
    config: Any = getattr(base_model(model), "config", None)
    number = config.get_text_config().num_hidden_layers if config is not None else 0
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    return list(lists[0]) if lists else []


def with_forward(cls: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """A class that is `cls` but for its forward, and goes by its name in messages and in saved models."""
    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__})
