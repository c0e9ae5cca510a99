"""Whether a model keeps the documents of a packed row apart, before a run relies on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.engine.attention import documents, forward_kwargs, set_way, watched_windows
from lightning_ft.engine.model import base_model, probing, unwrapped
from lightning_ft.errors import TrainingError
from lightning_ft.types import Batch

if TYPE_CHECKING:
    from torch import nn

    from lightning_ft.engine.attention import Way

_CHECK_LENGTHS = (7, 19, 131, 12)
"""Documents of a check; the long one where the model has so many positions."""
_UNEXPECTED_LAYERS = ("chunked_attention", "linear_attention", "conv", "mamba")
"""Layer types whose state crosses borders, or whose windows a short check would not see."""
_STRETCHING = "longrope"
"""Rotary positions whose frequencies follow from the largest position of the whole input. (So do those of the type `dynamic`,
but only beyond the positions that a model has.)"""


@dataclass(frozen=True, slots=True)
class PackingCheck:
    """What `check_packing` found."""

    ok: bool
    """Whether a packed row gives the same logits as its documents one by one."""
    difference: float
    """Root mean square of the difference over that of the logits; NaN where nothing could be compared."""
    reason: str
    """One sentence for the log."""
    way: Way = "documents"


def check_packing(
    model: nn.Module, vocab_size: int | None = None, tolerance: float | None = None, *, longest: int = 0
) -> PackingCheck:
    """Whether the model keeps the documents of a packed row apart: its logits against those of each document alone.

    Tried are our attention function, then stock attention with restarted positions; `documents` takes what was exact.
    Meant for the start of a packed run; runs without gradient, in eval mode, and leaves the random state alone.

    Args:
        model: as it will be trained.
        vocab_size: token ids are drawn below it; None: that of its config.
        tolerance: largest relative difference; None: by the precision of the logits.
        longest: tokens of the longest document that there may be.
    """
    stretched = _stretched(model, longest)
    if stretched:
        set_way(model, "none")
        reason = f"Packing is off: rotary positions of type {stretched} depend on the longest document of a row."
        return PackingCheck(False, float("nan"), reason, "none")
    layers = set(getattr(_text_config(model), "layer_types", None) or ())
    found = sorted(layers.intersection(_UNEXPECTED_LAYERS))
    if found:
        set_way(model, "none")
        return PackingCheck(
            False, float("nan"), f"Packing is off: layers of type {found[0]} cross the borders of documents.", "none"
        )
    failures = []
    ways: tuple[Way, ...] = ("documents", "positions")
    for way in ways:
        set_way(model, way)
        try:
            size = int(_text_config(model).vocab_size) if vocab_size is None else vocab_size
            difference, allowed = _packed_difference(model, size, tolerance)
        except Exception as error:  # whatever a family's own code raises: then it cannot be packed this way
            failures.append(f"{way}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        if difference <= allowed:
            words = {"documents": "documents by the packed attention function", "positions": "restarted positions"}[way]
            after = f" ({'; '.join(failures)})" if failures else ""
            return PackingCheck(True, difference, f"Packing by {words}, equal to {difference:.1e}{after}.", way)
        failures.append(f"{way}: logits differ by {difference:.1e}")
    set_way(model, "none")
    return PackingCheck(False, float("nan"), f"Packing is off: documents are not kept apart ({'; '.join(failures)}).", "none")


def _packed_difference(model: nn.Module, vocab_size: int, tolerance: float | None) -> tuple[float, float]:
    """Relative difference of packed and separate logits, and the largest that rounding explains."""
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    known = getattr(_text_config(model), "max_position_embeddings", None) or 0
    lengths = tuple(length for length in _CHECK_LENGTHS if length < 20 or length <= known)
    parts = [torch.randint(vocab_size, (1, length), generator=draw).to(device) for length in lengths]
    borders = tuple(sum(lengths[:n]) for n in range(len(parts) + 1))
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    ids = torch.cat(parts, 1)
    batch = Batch(ids, ids, positions, borders, tuple(map(str, lengths)))
    with probing(model):
        with watched_windows() as windows, documents(model):
            packed = model(input_ids=ids, **forward_kwargs(batch)).logits
        separate = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], 1)
    if packed.shape != separate.shape:
        raise TrainingError(f"{packed.shape[1]} logits came for {separate.shape[1]} tokens.")
    if windows and sum(window is not None for window in windows) < _expected_windows(model, len(windows)):
        raise TrainingError("sliding windows do not reach the attention function")
    # Norms, rotations and softmax of many families are float32 in any case, hence no more for 64 bits.
    allowed = {64: 1e-6, 32: 1e-4}.get(torch.finfo(packed.dtype).bits, 5e-2)
    if torch.is_autocast_enabled(device.type) or any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
        allowed = 5e-2
    wide, other = packed.double(), separate.double()
    difference = float((wide - other).norm() / other.norm())
    return difference, allowed if tolerance is None else tolerance


def _stretched(model: nn.Module, longest: int) -> str | None:
    """The type of rotary positions of the model that are others in a row with so long a document; None: they are not."""
    config = _text_config(model)
    given: Any = getattr(config, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [one for one in given.values() if isinstance(one, dict)]
    for kind in kinds:
        first = kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        if kind.get("rope_type") == _STRETCHING and longest > (first or config.max_position_embeddings):
            return _STRETCHING
    return None


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(base_model(unwrapped(model)), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _expected_windows(model: nn.Module, calls: int) -> int:
    """How many of the model's attention layers have a sliding window, by its config."""
    config = _text_config(model)
    layers = getattr(config, "layer_types", None)
    if layers:
        return sum("sliding" in layer for layer in layers)
    if getattr(config, "sliding_window", None) is None or getattr(config, "use_sliding_window", True) is False:
        return 0
    return calls
