"""Decoder layers through torch.compile: the same graphs for all layers of a stack and for all lengths of rows.

A layer's class is changed, not the layer, as in `norm`: names, weights, adapters, saving and merging stay what they were. Only
training runs compiled; validation, generation and the checks at the start take the layer's own code, of which the compiler
knows nothing. Recomputation (`recompute`) surrounds what is compiled.

Attention over packed rows is not traced: it would be compiled anew for every number of documents. It is called between
graphs, so that a layer has four of them in place of one. The borders of the documents go to it past the layer, whose compiled
code would otherwise be bound to their number.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lightning_ft.engine.attention import DOCUMENTS, documents_attention
from lightning_ft.engine.model import with_forward
from lightning_ft.engine.recompute import stacks_of
from lightning_ft.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_NEEDED = {"cpu": "a C++ compiler and Python's headers", "cuda": "Triton, a C compiler and Python's headers"}
_COMPILED: set[type[nn.Module]] = set()
_CHECKPOINTS = "forward_with_checkpointing"
"""What transformers calls the function that it puts around the forward of a layer that can be recomputed."""
_borders: tuple[int, ...] | None = None
"""Of the documents of the row that runs through a compiled layer."""


def check_compiler(device: torch.device) -> None:
    """Compile a line, to see whether that can be done here.

    Raises:
        UsageError: it cannot, as there is no C++ compiler, no Triton, or no header of Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own parts use what torch has deprecated
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # each of the parts fails in its own way
        raise UsageError(
            f"Expected torch.compile to work here for --compile, which takes {_NEEDED.get(device.type, 'a compiler')}, got: "
            f"{_said(error)}; leave --compile out."
        ) from error


def _said(error: Exception) -> str:
    """The first line of the error behind an error, without torch's advice to developers."""
    error = getattr(error, "inner_exception", error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"[:200]


def compile_layers(model: nn.Module) -> int:
    """Let the decoder layers run compiled in training, and return how many do; nothing is compiled before the first step.

    Raises:
        UsageError: the model is not made of such layers.
    """
    layers = [layer for stack in stacks_of(model) for layer in stack]
    if not layers:
        raise UsageError(
            f"Expected a model of decoder layers for --compile, got {type(model).__name__}, which has none; leave it out."
        )
    # DDP would have graphs divided by its buckets; between layers that are compiled one by one they are divided already.
    torch._dynamo.config.optimize_ddp = False
    AttentionInterface.register(DOCUMENTS, _outside)
    for layer in layers:
        if type(layer) not in _COMPILED:
            cls: Any = type(layer)
            layer.__class__ = _compiled(cls)
    return len(layers)


def is_compiled(layer: nn.Module) -> bool:
    """Whether a layer's forward is."""
    return type(layer) in _COMPILED


@torch.compiler.disable  # type: ignore[untyped-decorator]  # of torch
def _outside(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    cu_seq_lens: tuple[int, ...] | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """`documents_attention`, also where the borders did not come through the layer."""
    borders = _borders if cu_seq_lens is None else cu_seq_lens
    return documents_attention(module, query, key, value, attention_mask, cu_seq_lens=borders, **kwargs)


@functools.cache
def _compiled(cls: Any) -> Any:
    """The class whose forward is compiled, once for all layers that are of it."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    plain = _uncheckpointed(cls.forward)
    run = torch.compile(plain, dynamic=True)

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        global _borders
        if not (self.training and torch.is_grad_enabled()):
            return plain(self, hidden_states, *args, **kwargs)
        if not hidden_states.requires_grad and any(p.requires_grad for p in self.parameters()):
            # Of the lowest layer above a frozen embedding, which would get graphs of its own.
            hidden_states = hidden_states.detach().requires_grad_()
        _borders = kwargs.pop("cu_seq_lens", None)
        try:
            return run(self, hidden_states, *args, **kwargs)
        except (TorchDynamoException, InductorError) as error:
            raise TrainingError(f"This model's layers cannot be compiled ({_said(error)}); leave --compile out.") from error
        finally:
            _borders = None

    short = with_forward(cls, forward)
    _COMPILED.add(short)
    return short


def _uncheckpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward without what recomputes it: that is put around the compiled one again."""
    while getattr(getattr(forward, "__code__", None), "co_name", "") == _CHECKPOINTS:
        forward = forward.__wrapped__  # type: ignore[attr-defined]  # of functools.wraps
    return forward
