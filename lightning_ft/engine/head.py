"""How the output layer of a model is reached: past its forward, at selected positions, or in full.

`chunked`: while the model runs, the forward of its output layer is the identity, so that the model returns hidden states;
the layer stays in the module tree, where optimisers, state dicts, peft and FSDP see it. Logits are then made in chunks.
`selected`: the model makes the logits itself, at supervised positions only (`logits_to_keep`).
`full`: the model makes all logits, because its forward takes no `logits_to_keep`.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_ft.engine.model import base_model, probing, unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Names under which configs keep the soft cap of the logits."""
_WIDE = 100.0
"""Logits that are larger than most caps."""


@dataclass(frozen=True, slots=True)
class HeadPath:
    """The way that a model's loss takes."""

    name: Literal["chunked", "selected", "full"]
    reason: str
    """Why this way, in words for the log."""
    cap: float | None = None
    """Soft cap of the logits, applied by us on the chunked way."""


_paths: WeakKeyDictionary[nn.Module, HeadPath] = WeakKeyDictionary()


def head_module(model: nn.Module) -> nn.Module | None:
    """The output layer as it stands in the module tree (peft's wrapper included)."""
    base = base_model(model)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return head if isinstance(head, nn.Module) else None


def head_linear(head: nn.Module) -> nn.Module:
    """The layer that does the work: of peft's `modules_to_save`, the copy that is active now."""
    copies: Any = getattr(head, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict) or not hasattr(head, "original_module"):
        return head
    wrapper: Any = head
    active = [name for name in wrapper.active_adapters if name in copies]
    return wrapper.original_module if wrapper.disable_adapters or not active else copies[active[0]]


def head_path(model: nn.Module) -> HeadPath:
    """The way for `model`: decided once, by looking at its output layer and by a forward pass of three tokens."""
    key = unwrapped(model)
    if key not in _paths:
        # Autocast rounds the two ways differently, which must not look like a head that does more than a product.
        with torch.autocast(next(key.parameters()).device.type, enabled=False):
            _paths[key] = _decide(key)
    return _paths[key]


def take_path(model: nn.Module, known: HeadPath) -> None:
    """Take the way of another model of the same architecture, which saves the forward passes that it is decided by.

    Nothing is taken where this model's output layer has become one that only a model's own forward can use.
    """
    if not _obstacle(head_module(model)):
        _paths[unwrapped(model)] = known


def demote(model: nn.Module, reason: str) -> HeadPath:
    """Give up the model's present way for the next plainer one."""
    path = head_path(model)
    plainer: Literal["selected", "full"] = "selected" if path.name == "chunked" and takes_selection(model) else "full"
    _paths[unwrapped(model)] = HeadPath(plainer, reason)
    return _paths[unwrapped(model)]


def takes_selection(model: nn.Module) -> bool:
    """Whether the model's forward has `logits_to_keep`."""
    return "logits_to_keep" in inspect.signature(base_model(model).forward).parameters


def _decide(model: nn.Module) -> HeadPath:
    reason = _obstacle(head_module(model))
    cap = next((config[name] for config, name in _caps(model)), None)
    if not reason:
        reason = _probe(model, HeadPath("chunked", "", cap))
    if not reason:
        return HeadPath("chunked", "hidden states at supervised positions, output layer and cross entropy in chunks", cap)
    if takes_selection(model):
        return HeadPath("selected", f"logits at supervised positions by the model itself, because {reason}")
    return HeadPath("full", f"logits at every position, because {reason} and its forward has no logits_to_keep")


def _obstacle(head: nn.Module | None) -> str:
    """Why the output layer's forward cannot be replaced by a product with its weight; empty if it can."""
    if head is None:
        return "the model names no output layer"
    linear = head_linear(head)
    if type(linear).forward is not nn.Linear.forward:
        return f"the output layer is a {type(linear).__module__}.{type(linear).__qualname__}, not a plain nn.Linear"
    if "forward" in vars(head) or "forward" in vars(linear):
        return "something else has replaced the output layer's forward"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for module in (head, linear) for name in hooks):
        return "the output layer has hooks (it is sharded or observed by itself)"
    return ""


def _probe(model: nn.Module, path: HeadPath) -> str:
    """Whether what the model does after its output layer is nothing or a scale; otherwise what was seen."""
    head = head_module(model)
    assert head is not None
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))  # what follows may write into it
    linear: Any = head_linear(head)
    try:
        with probing(model), bypassed(model, path):
            ids = torch.tensor([[1, 2, 1]], device=next(model.parameters()).device)
            out = model(input_ids=ids, use_cache=False).logits
            # Hidden states are small and few beside logits: a cap, or a cut of the vocabulary, would not show in them.
            logits = torch.linspace(-_WIDE, _WIDE, 3 * linear.weight.shape[0], device=ids.device, dtype=seen[0].dtype)
            logits = logits.view(1, 3, -1)
            setattr(head, "forward", lambda hidden: logits.clone())  # noqa: B010  # a module's method, as far as mypy knows
            wide = model(input_ids=ids, use_cache=False).logits
    except Exception as error:  # whatever remote code raises: the plain way still works
        return f"its forward fails without the output layer ({type(error).__name__}: {error})"
    finally:
        handle.remove()
    if len(seen) != 2 or not isinstance(out, Tensor) or out.shape != seen[0].shape:
        return "its forward uses the output layer in a way of its own"
    if wide.shape != logits.shape:
        return f"its forward leaves {wide.shape[-1]:,} of {logits.shape[-1]:,} logits"
    given = seen[0].double()
    scale = (out.double() * given).sum() / given.square().sum()
    precision = torch.finfo(torch.promote_types(out.dtype, seen[0].dtype)).eps
    if min(torch.finfo(out.dtype).bits, torch.finfo(seen[0].dtype).bits) < 32:
        precision = torch.finfo(torch.bfloat16).eps
    for got, from_head in ((out.double(), given), (wide.double(), logits.double())):
        expected = from_head * scale
        if not torch.allclose(got, expected, rtol=8 * precision, atol=8 * precision * float(expected.abs().max())):
            return "its forward changes the logits afterwards by more than a factor"
    if abs(float(scale) - 1) > 8 * precision and getattr(linear, "bias", None) is not None:
        return "its forward scales the logits and the output layer has a bias"
    return ""


def _identity(hidden: Tensor) -> Tensor:
    return hidden


def _caps(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where the model's configs hold a soft cap of the logits: (attributes of the config, name)."""
    config: Any = getattr(base_model(model), "config", None)
    configs = [] if config is None else [config]
    if hasattr(config, "get_text_config") and config.get_text_config() is not config:  # a composite model
        configs.append(config.get_text_config())
    return [(vars(c), name) for c in configs for name in _CAPS if isinstance(vars(c).get(name), (int, float))]


@contextlib.contextmanager
def bypassed(model: nn.Module, path: HeadPath) -> Iterator[None]:
    """Within the block the model returns, as its logits, what goes into its output layer (scaled if it scales logits)."""
    head = head_module(model)
    assert head is not None
    caps = [(config, name, config[name]) for config, name in _caps(model)] if path.cap is not None else []
    # A module-level function: torch.compile would compile again for a new lambda.
    head.forward = _identity
    try:
        for config, name, _ in caps:
            config[name] = None
        yield
    finally:
        del head.forward
        for config, name, value in caps:
            config[name] = value
