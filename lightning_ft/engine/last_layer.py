"""The last decoder layer's MLP and output projection, computed only where the model's output is read.

Behind its attention the last layer treats every position by itself, and nothing looks at what it makes of a position whose
prediction is not trained. So both modules get the positions that are read (and a few more, for fewer different shapes), and
everybody else's output is zero. Losses and gradients stay what they were, up to the rounding of products of another size; only
random numbers, as of dropout within the two modules, fall on other elements.

It is on for a model once `verify.verify_last_layer` has seen that it changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from lightning_ft.engine.compiled import is_compiled
from lightning_ft.engine.model import decoder_layers, unwrapped
from lightning_ft.engine.recompute import CHECKPOINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

_MLP = frozenset({"mlp", "feed_forward"})
_ATTENTION = frozenset({"self_attn", "attn", "attention", "self_attention"})
_OUTPUT = frozenset({"o_proj", "out_proj", "c_proj", "dense"})
"""What transformers calls the parts of a decoder layer."""
_on: WeakSet[nn.Module] = WeakSet()


def parts(model: nn.Module) -> list[nn.Module]:
    """The modules of the last layer that can be left out at a position: its MLP and its attention's output projection.

    None of them where the layer names them otherwise, and where it is compiled.
    """
    layers = decoder_layers(model)
    if not layers or is_compiled(layers[-1]):
        return []
    layer = layers[-1]
    mlps = [module for name, module in layer.named_children() if name in _MLP]
    outputs = [
        module
        for name, attention in layer.named_children()
        if name in _ATTENTION
        for inner, module in attention.named_children()
        if inner in _OUTPUT
    ]
    return [*mlps, *outputs] if len(mlps) == len(outputs) == 1 else []


def switch(model: nn.Module, *, on: bool) -> None:
    """Let `reading` do something for a model, or nothing."""
    (_on.add if on else _on.discard)(unwrapped(model))


@contextlib.contextmanager
def reading(model: nn.Module, positions: Tensor | None, total: int) -> Iterator[None]:
    """Within the block only these positions of the last layer's output are right; does nothing where it is not switched on.

    A layer that activation checkpointing runs again in the backward pass is run again for the same positions, although the
    block is left by then.

    Args:
        model: Whose `parts` are meant.
        positions: Flat positions, each once; None: all.
        total: How many positions there are.
    """
    if positions is None or unwrapped(model) not in _on:
        yield
        return
    modules, layer = parts(model), decoder_layers(model)[-1]
    checkpoint = vars(layer).get(CHECKPOINT)
    if checkpoint is not None:
        setattr(layer, CHECKPOINT, functools.partial(_run_again, checkpoint, modules, positions, total))
    try:
        with only_at(modules, positions, total):
            yield
    finally:
        if checkpoint is not None:
            setattr(layer, CHECKPOINT, checkpoint)


def _run_again(
    checkpoint: Callable[..., Any], modules: list[nn.Module], positions: Tensor, total: int, function: Callable[..., Any],
    *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    """Call a checkpointing function so that what it runs, now and again in the backward pass, is at these positions."""

    def inside(*inner_args: Any, **inner_kwargs: Any) -> Any:
        with only_at(modules, positions, total):
            return function(*inner_args, **inner_kwargs)

    return checkpoint(inside, *args, **kwargs)


@contextlib.contextmanager
def only_at(modules: list[nn.Module], positions: Tensor, total: int) -> Iterator[None]:
    """Within the block these modules compute flat positions of their input only, and return zeros elsewhere.

    An input of another number of positions than `total` (prompt tuning puts virtual tokens in front) is computed whole.
    """
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        own: Any = module
        own.forward = functools.partial(_at, module.forward, positions, total)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            own = module
            if forward is None:
                del own.forward
            else:
                own.forward = forward


def _at(forward: Callable[..., Tensor], positions: Tensor, total: int, hidden: Tensor) -> Tensor:
    """A module's forward at some positions: (..., D) to (..., E)."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    if len(rows) != total:
        return forward(hidden)
    found = forward(rows.index_select(0, positions)[None])[0]
    return found.new_zeros(len(rows), found.shape[-1]).index_copy_(0, positions, found).view(*hidden.shape[:-1], -1)
