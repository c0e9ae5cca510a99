"""Losses and scores of a batch, computed at its supervised positions only.

Every function goes through the model's own `forward`, so that hooks, peft, FSDP and activation checkpointing keep working.
Full logits, (B, T, V), never exist unless the model leaves no other way (`engine.head`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ft.data.targets import row_numbers, supervised
from lightning_ft.engine import last_layer
from lightning_ft.engine.attention import documents, forward_kwargs, packs_documents, whole_rows
from lightning_ft.engine.cross_entropy import chunked_nll, summed_cross_entropy, token_cross_entropy, wide_dtype
from lightning_ft.engine.head import HeadPath, bypassed, head_linear, head_module, head_path, takes_selection

if TYPE_CHECKING:
    from typing import Any

    from lightning_ft.types import Batch, Shared, Supervised

__all__ = ["HeadPath", "head_path", "loss_by", "score_rows", "supervised", "token_counts", "token_logps", "token_loss"]

ROUND = 32
"""Supervised positions of a micro-batch are a multiple of this on a CPU."""


def token_loss(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The batch's loss as `(sum_i w_i nll_i, sum_i w_i)` over its supervised tokens; the first has the gradient.

    With label `smoothing` e, nll_i is (1 - e) times the target's plus e times the mean over the vocabulary.
    """
    return loss_by(model, batch, head_path(model), smoothing)


def token_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Summed log-probabilities (nats) of the supervised tokens of each row, with gradient and without loss weights.

    Returns:
        (B,), or of a packed row one per document.
    """
    chosen, path = supervised(batch), head_path(model)
    if path.name == "chunked":
        rounded = _rounded(chosen)
        states, (weight, bias) = _states(model, batch, path, rounded), _head_weights(model)
        nll = token_cross_entropy(states, weight, bias, rounded.targets, cap=path.cap)[: len(chosen.index)]
    else:
        nll = _plain_nll(_states(model, batch, path, chosen), chosen.targets)
    sums = nll.new_zeros(_num_rows(batch))
    return sums.index_add(0, _rows(batch, chosen), -nll)


def token_counts(batch: Batch) -> Tensor:
    """(B,) supervised tokens of each row, or of a packed row of each document, as float32."""
    chosen = supervised(batch)
    ones = torch.ones(len(chosen.index), device=chosen.index.device)
    return torch.zeros(_num_rows(batch), device=ones.device).index_add_(0, _rows(batch, chosen), ones)


@torch.no_grad()
def score_rows(model: nn.Module, batch: Batch) -> list[tuple[float, int, int]]:
    """For each row of the batch: sum of nll (nats), supervised tokens, tokens whose most likely prediction was right.

    No gradient, no loss weights. On the chunked way logits exist for one chunk of positions at a time.
    """
    chosen, path = supervised(batch), head_path(model)
    states = _states(model, batch, path, chosen)
    hits = torch.empty_like(chosen.targets, dtype=torch.bool)
    if path.name == "chunked":
        weight, bias = _head_weights(model)
        nll = chunked_nll(states, weight, bias, chosen.targets, cap=path.cap, hits=hits)
    else:
        nll = _plain_nll(states, chosen.targets)
        hits = states.argmax(-1) == chosen.targets
    columns = torch.stack([nll.double(), torch.ones_like(nll, dtype=torch.float64), hits.double()], 1)
    sums = columns.new_zeros(_num_rows(batch), 3).index_add_(0, _rows(batch, chosen), columns)
    return [(loss, int(tokens), int(right)) for loss, tokens, right in sums.tolist()]


def _rounded(chosen: Supervised) -> Supervised:
    """The same with positions of weight 0 added up to a multiple of `ROUND`, on a CPU.

    oneDNN keeps compiled kernels and buffers for every shape that it meets (about 18 MB for a small model), so shapes
    that never repeat would fill the memory and cost compilations.
    """
    extra = -len(chosen.index) % ROUND
    if chosen.index.device.type != "cpu" or not len(chosen.index) or not extra:
        return chosen
    weights = torch.ones(len(chosen.index)) if chosen.weights is None else chosen.weights
    index, targets = (torch.cat((t, t[-1:].expand(extra))) for t in (chosen.index, chosen.targets))
    return replace(chosen, index=index, targets=targets, weights=F.pad(weights, (0, extra)))


def loss_by(model: nn.Module, batch: Batch, path: HeadPath, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """As `token_loss`, by a given way."""
    chosen = supervised(batch)
    if path.name == "chunked":
        chosen = _rounded(chosen)
    states = _states(model, batch, path, chosen)
    if path.name == "chunked":
        weight, bias = _head_weights(model)
        loss = summed_cross_entropy(states, weight, bias, chosen.targets, chosen.weights, cap=path.cap, smoothing=smoothing)
    else:
        nll = _plain_nll(states, chosen.targets, smoothing)
        loss = (nll if chosen.weights is None else nll * chosen.weights).sum()
    if chosen.weights is None:
        return loss, torch.full((), float(len(chosen.targets)), device=loss.device)
    return loss, chosen.weights.sum()


def _states(model: nn.Module, batch: Batch, path: HeadPath, chosen: Supervised) -> Tensor:
    """At the chosen positions: hidden states (N, D) on the chunked way, logits (N, V) on the others."""
    index = chosen.index
    ids, read = batch.input_ids, chosen.read
    shared = _shared(model, batch)
    if shared is not None:
        ids, index = ids[:, shared.keep], shared.place[index]
        read = shared.read if shared.labels is chosen.labels else None
    length = ids.shape[1]
    extra: dict[str, Any] = {}
    columns = None
    if path.name == "selected" and takes_selection(model):
        # Positions that any row needs, counted from the end: prompt tuning puts virtual tokens in front.
        columns, where = torch.unique(index % length, return_inverse=True)
        extra["logits_to_keep"] = columns - length
    with (
        documents(model) if batch.documents is not None else whole_rows(),
        bypassed(model, path) if path.name == "chunked" else contextlib.nullcontext(),
        last_layer.reading(model, read if path.name == "chunked" else None, ids.numel()),
    ):
        out: Tensor = model(input_ids=ids, **forward_kwargs(batch, shared), **extra).logits
    if columns is None:
        out = out[:, -length:]
    elif len(ids) == 1 and shared is None:  # each column once, in order; of shared ones several documents read the same
        return out[0]
    else:
        index = index // length * len(columns) + where
    return out.reshape(-1, out.shape[-1]).index_select(0, index)


def _shared(model: nn.Module, batch: Batch) -> Shared | None:
    """How the batch may be computed with what its documents begin with only once, if that is known of these tokens."""
    if batch.shared is None or batch.shared.input_ids is not batch.input_ids or not packs_documents(model):
        return None
    return batch.shared


def _head_weights(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    head = head_module(model)
    assert head is not None, "the chunked way is only chosen for models with an output layer"
    linear: Any = head_linear(head)
    return linear.weight, linear.bias


def _plain_nll(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits.to(wide_dtype(logits.dtype)), targets, reduction="none", label_smoothing=smoothing)


def _rows(batch: Batch, chosen: Supervised) -> Tensor:
    """(N,) row or document of each chosen position; where the data loader found it no host waits for a GPU."""
    return row_numbers(batch, chosen.index) if chosen.rows is None else chosen.rows


def _num_rows(batch: Batch) -> int:
    # `rows` before documents: a packed row may end with a document that only fills it up.
    return len(batch.rows) or (len(batch.input_ids) if batch.documents is None else len(batch.documents) - 1)
