"""Activation checkpointing: decoder layers that keep their input only, and are run again in the backward pass."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.autograd.graph import save_on_cpu
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

CHECKPOINT = "_gradient_checkpointing_func"
"""Where transformers keeps a layer's checkpointing function."""


def checkpoint_activations(model: Any, every: int = 1, *, offload: bool = False) -> None:
    """Let the model recompute activations in the backward pass instead of keeping them.

    A layer is run again with the random numbers that it had, so that losses and gradients stay the same to the last bit.

    Args:
        model: Of transformers.
        every: Recomputed is the first layer of each so many; the others keep theirs. As the backward pass comes to the
            first one last, its activations are made when those of the others are gone.
        offload: Keep the inputs of the layers that are recomputed in the host's memory: pinned, so that the GPU copies
            them in its own time, in the order of its other work.

    Raises:
        UsageError: the model cannot do it, or not for single layers.
    """
    options = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:  # before transformers 5.23
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        raise UsageError(
            f"Expected a model that can recompute its activations for --gradient_checkpointing, got {type(model).__name__}, "
            "which cannot; leave it out."
        ) from error
    for module in model.modules() if offload else ():
        if CHECKPOINT in vars(module):
            setattr(module, CHECKPOINT, functools.partial(_offloaded, vars(module)[CHECKPOINT]))
    if every == 1:
        return
    stacks = stacks_of(model)
    if not stacks:
        raise UsageError(
            f"Expected a model of layers that can be recomputed one by one for --gradient_checkpointing {every}, got "
            f"{type(model).__name__}, which has none; type --gradient_checkpointing true."
        )
    for stack in stacks:
        for number, layer in enumerate(stack):
            layer.gradient_checkpointing = number % every == 0


def _offloaded(checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a checkpointing function; what it keeps is the input of `function`, as that itself runs under hooks of its own."""
    with on_host():
        return checkpoint(function, *args, **kwargs)


def on_host() -> AbstractContextManager[Any]:
    """Within it what autograd keeps goes to the host's memory. A rehearsal puts another one here."""
    return save_on_cpu(pin_memory=True)


def stacks_of(model: nn.Module) -> list[list[Any]]:
    """Lists of the model's layers that can be recomputed one by one, bottom first; as a rule one list, of decoder layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = [[layer for layer in layers if isinstance(layer, GradientCheckpointingLayer)] for layers in lists]
    return list(filter(None, found))
