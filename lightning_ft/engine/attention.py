"""Attention of packed rows: every document sees itself only, and no T x T mask over the row is ever made.

One function is registered with transformers' attention interface. It gets the borders of the documents as the keyword
`cu_seq_lens`, which transformers passes on from `model.forward`. On CUDA, in 16 bits, it is one call of
`torch.nn.attention.varlen`; on a CPU, in bfloat16, it is `causal`; elsewhere each document is one call of scaled dot product
attention.

The function has no entry in the mask interface: transformers then makes no mask at all, and does not wait for the GPU to
look for restarted positions.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, masking_utils

from lightning_ft.engine.causal import causal_attention
from lightning_ft.engine.document import LONG, attend, attend_alike
from lightning_ft.engine.model import base_model, unwrapped
from lightning_ft.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_ft.types import Batch, Shared

DOCUMENTS = "lightning_ft_documents"
"""The attention function's name in transformers' attention interface."""

_LOOK = "find_packed_sequence_indices"
Way = Literal["documents", "positions", "none"]
"""Our attention function, stock attention with restarted positions (it makes a T x T mask), or no packing."""


_ways: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()
"""Of transformers' own models: what was seen of one holds for it inside an adapter, too."""
_watched: list[list[int | None]] = []
_switches: WeakKeyDictionary[nn.Module, tuple[list[Any], list[tuple[ref[nn.Module], str]]]] = WeakKeyDictionary()


def forward_kwargs(batch: Batch, shared: Shared | None = None) -> dict[str, Any]:
    """What `model.forward` needs beside the token ids, which are those of `shared.keep` only where that is given.

    Padded rows need neither mask nor positions: the padding is on the right and the model is causal. The cache must be
    off: with it, transformers takes a packed row for one document.
    """
    kwargs: dict[str, Any] = {"use_cache": False}
    if batch.documents is None:
        return kwargs
    kwargs |= {"position_ids": batch.position_ids, "cu_seq_lens": batch.documents}
    if shared is not None:
        kwargs |= {"position_ids": batch.position_ids[:, shared.keep], "shared": shared}
    return kwargs


@contextlib.contextmanager
def documents(model: nn.Module) -> Iterator[None]:
    """Within the block the model's attention is `DOCUMENTS`; afterwards, for padded batches, what it was before.

    Layers that activation checkpointing runs again in the backward pass are run again with `DOCUMENTS`, too, although the
    block is left by then.
    """
    key = unwrapped(model)
    if _ways.get(base_model(key), "documents") == "positions":
        yield
        return
    if key not in _switches:
        _switches[key] = _find_switches(key)
    configs, checkpointed = _switches[key]
    replaced: list[tuple[nn.Module, str, Any]] = []
    with _switched(configs):
        try:
            for pointer, name in checkpointed if torch.is_grad_enabled() else ():
                module = pointer()
                original = None if module is None else vars(module).get(name)
                if module is not None and original is not None:
                    setattr(module, name, functools.partial(_run_again_inside, original, configs))
                    replaced.append((module, name, original))
            yield
        finally:
            for module, name, original in replaced:
                setattr(module, name, original)


def packs_documents(model: nn.Module) -> bool:
    """Whether packed rows go through the function here, by what `packing.check_packing` has seen."""
    return _ways.get(base_model(model), "documents") == "documents"


def set_way(model: nn.Module, way: Way) -> None:
    """From now on packed rows of the model go this way."""
    _ways[base_model(model)] = way


@contextlib.contextmanager
def watched_windows() -> Iterator[list[int | None]]:
    """Within the block the list gets the sliding window of each call of the attention function."""
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


@contextlib.contextmanager
def whole_rows() -> Iterator[None]:
    """Within the block, which is for padded batches, transformers does not look for documents in a row.

    It would look at positions that it made itself, and wait for the GPU to hear that there is one sequence in each row.
    """
    look = getattr(masking_utils, _LOOK, None)
    if look is not None:
        setattr(masking_utils, _LOOK, lambda positions: None)
    try:
        yield
    finally:
        if look is not None:
            setattr(masking_utils, _LOOK, look)


@contextlib.contextmanager
def _switched(configs: list[Any]) -> Iterator[None]:
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = DOCUMENTS
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


def _run_again_inside(
    checkpoint: Callable[..., Any], configs: list[Any], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Call a checkpointing function so that what it runs, now and again in the backward pass, sees `DOCUMENTS`."""

    def inside(*inner_args: Any, **inner_kwargs: Any) -> Any:
        with _switched(configs):
            return function(*inner_args, **inner_kwargs)

    return checkpoint(inside, *args, **kwargs)


def _find_switches(model: nn.Module) -> tuple[list[Any], list[tuple[ref[nn.Module], str]]]:
    """The configs that the text layers read their attention's name from, and the modules that may be checkpointed."""
    config = base_model(model).config
    kinds = {type(config), type(config.get_text_config())}
    configs: dict[int, Any] = {}
    checkpointed: list[tuple[ref[nn.Module], str]] = []
    for module in model.modules():
        own = getattr(module, "config", None)
        if type(own) in kinds:
            configs[id(own)] = own
        if hasattr(module, "gradient_checkpointing"):
            checkpointed.append((ref(module), "_gradient_checkpointing_func"))
        if hasattr(module, "checkpoint_fn"):  # torch's checkpoint_wrapper
            checkpointed.append((ref(module), "checkpoint_fn"))
    return list(configs.values()), checkpointed


def documents_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    shared: Shared | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of one packed row.

    Args:
        module: the attention layer.
        query: (1, H, T, D).
        key: (1, K, T, D), each of the K heads shared by H / K query heads.
        value: (1, K, T, E).
        attention_mask: must be None.
        dropout: probability.
        scaling: factor of the scores; None: D ** -0.5.
        cu_seq_lens: borders of the documents, `(0, n1, n1 + n2, ..., T)`.
        sliding_window: tokens that a position sees, itself included.
        softcap: `c` in `c tanh(score / c)`.
        s_aux: (H,) attention sinks, a further score per head that takes its share of the softmax.
        shared: where what the documents begin with is in query, key and value only once, how they are put together again: T
            is then S everywhere, but the borders are those of whole documents.
        **kwargs: what other attention functions read.

    Returns:
        (1, T, H, E) and None (no attention weights).

    Raises:
        TrainingError: borders are missing or do not fit, or the layer wants something that documents do not have.
    """
    if cu_seq_lens is None:
        raise TrainingError(
            f"{type(module).__name__} called {DOCUMENTS} without document borders: its model does not pass cu_seq_lens on, "
            "or a padded batch was run inside engine.attention.documents(). Type --packing off."
        )
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # norms of query and key leave them in float32
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if shared is not None and query.shape[2] == len(shared.keep):
        q, k, v = (tensor.index_select(2, shared.place) for tensor in (query, key, value))
        out, _ = documents_attention(
            module, q, k, v, attention_mask, dropout, scaling, cu_seq_lens, sliding_window, softcap, s_aux, **kwargs
        )
        return out.index_select(1, shared.keep), None
    if query.shape[0] != 1 or cu_seq_lens[-1] != query.shape[2] or query.shape[2] != key.shape[2]:
        raise TrainingError(
            f"{type(module).__name__}: one packed row of {cu_seq_lens[-1]} tokens was expected, queries and keys are "
            f"{tuple(query.shape)} and {tuple(key.shape)}. Type --packing off."
        )
    if attention_mask is not None or kwargs.get("position_bias") is not None or kwargs.get("is_causal") is False:
        raise TrainingError(f"{type(module).__name__} needs a mask or a bias of its own. Type --packing off.")
    for windows in _watched:
        windows.append(sliding_window)
    lengths = [end - start for start, end in itertools.pairwise(cu_seq_lens)]
    unlimited = sliding_window is None or max(lengths) <= sliding_window
    if softcap is None and s_aux is None and _varlen_fits(query, value, dropout):
        if unlimited and lengths[0] >= LONG and len(set(lengths)) == 1:
            return attend_alike(query, key, value, lengths[0], scaling), None
        out = _varlen(query, key, value, cu_seq_lens, scaling, sliding_window)
        return out, None
    if softcap is None and s_aux is None and not dropout and unlimited and _all_bf16_on_cpu(query, key, value):
        return causal_attention(query, key, value, cu_seq_lens, scaling), None
    # split, not slices: its backward is one concatenation, where each slice's would fill and add a whole row of zeros.
    documents_of = zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    parts = [attend(q, k, v, dropout, scaling, sliding_window, softcap, s_aux) for q, k, v in documents_of]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _all_bf16_on_cpu(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 for tensor in tensors)


@functools.cache
def _varlen_function() -> Callable[..., Any] | None:
    """Torch's varlen_attn, if it has the arguments that are used here (torch 2.10's first form had others)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = inspect.signature(varlen_attn).parameters
    return varlen_attn if "window_size" in names and "scale" in names else None


def _varlen_fits(query: Tensor, value: Tensor, dropout: float) -> bool:
    return (
        query.is_cuda
        and dropout == 0
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _varlen_function() is not None
    )


@functools.lru_cache(maxsize=8)
def _borders(cu_seq_lens: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Borders on the device and the longest document, once for all layers."""
    longest = max(end - start for start, end in itertools.pairwise(cu_seq_lens))
    borders = torch.tensor(cu_seq_lens, dtype=torch.int32)
    if device.type == "cuda":
        borders = borders.pin_memory()  # or the host would wait for the copy
    return borders.to(device, non_blocking=True), longest


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: tuple[int, ...],
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """All documents in one kernel: (1, T, H, D)."""
    function = _varlen_function()
    assert function is not None, "asked by _varlen_fits"
    borders, longest = _borders(cu_seq_lens, query.device)
    if "enable_gqa" not in inspect.signature(function).parameters:
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        grouped = {}
    else:
        grouped = {"enable_gqa": query.shape[1] != key.shape[1]}
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    # (-1, 0) is what torch takes for plainly causal; a window counts the tokens before the position.
    window = (-1, 0) if sliding_window is None or longest <= sliding_window else (sliding_window - 1, 0)
    out: Tensor = function(q, k, v, borders, borders, longest, longest, scale=scaling, window_size=window, **grouped)
    return out[None]


AttentionInterface.register(DOCUMENTS, documents_attention)
