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

from lightning_ft.data.targets import supervised
from lightning_ft.engine import last_layer
from lightning_ft.engine.attention import documents, forward_kwargs, whole_rows
from lightning_ft.engine.cross_entropy import chunked_nll, summed_cross_entropy, token_cross_entropy, wide_dtype
from lightning_ft.engine.head import HeadPath, bypassed, demote, head_linear, head_module, head_path, reshard, takes_selection
from lightning_ft.types import IGNORE_INDEX, Batch, Supervised

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "HeadPath", "head_path", "score_rows", "supervised", "token_logps", "token_loss", "verify_head", "verify_last_layer",
]  # fmt: skip

_SAMPLE_TOKENS = 32
_SAMPLE_ROWS = 2
ROUND = 32
"""Supervised positions of a micro-batch are a multiple of this on a CPU."""


def token_loss(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The batch's loss as `(sum_i w_i nll_i, sum_i w_i)` over its supervised tokens; the first has the gradient.

    With label `smoothing` e, nll_i is (1 - e) times the target's plus e times the mean over the vocabulary.
    """
    return _token_loss(model, batch, head_path(model), smoothing)


def token_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Summed log-probabilities (nats) of the supervised tokens of each row, with gradient and without loss weights.

    Returns:
        (B,), or of a packed row one per document.
    """
    chosen, path = supervised(batch), head_path(model)
    states = _states(model, batch, path, chosen)
    if path.name == "chunked":
        weight, bias = _head_weights(model)
        nll = token_cross_entropy(states, weight, bias, chosen.targets, cap=path.cap)
    else:
        nll = _plain_nll(states, chosen.targets)
    sums = nll.new_zeros(_num_rows(batch))
    return sums.index_add(0, _rows(batch, chosen.index), -nll)


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
    sums = columns.new_zeros(_num_rows(batch), 3).index_add_(0, _rows(batch, chosen.index), columns)
    return [(loss, int(tokens), int(right)) for loss, tokens, right in sums.tolist()]


def verify_head(
    model: nn.Module, batch: Batch, tolerance: float | None = None, *, computes_in: torch.dtype | None = None
) -> str:
    """Compare the chosen way with the full logits on a small part of `batch`, loss and gradients of what trains.

    Where they differ the model's way is demoted to the next plainer one, which is compared again. Parameters' `.grad` and the
    random state are as before afterwards.

    Args:
        model: as it will be trained.
        batch: any batch with supervised tokens.
        tolerance: largest relative difference; None: by the model's lowest precision (1e-9, 1e-3 or 0.1 for 64, 32 and
            16 bits: what this looks for, a lost gradient, is a difference of 1).
        computes_in: What parameters are gathered in where they are spread over processes; None: as they are.

    Returns:
        One sentence for the log.
    """
    path, sample = head_path(model), _sample(batch)
    missing = _over_ranks(float(sample is None), batch.input_ids.device)
    if sample is None or missing:
        return f"Loss path {path.name}: {path.reason} (not compared with the full logits: a batch has no supervised token)."
    tolerance = _tolerance(model, computes_in) if tolerance is None else tolerance
    expected = _loss_and_gradients(model, sample, HeadPath("full", ""))
    while True:
        if path.name == "full":
            return f"Loss path full: {path.reason}."
        why = ""
        try:
            difference = _difference(expected, _loss_and_gradients(model, sample, path))
        except (RuntimeError, TypeError, ValueError) as error:
            difference, why = float("inf"), f" ({type(error).__name__}: {error})"
        difference = _over_ranks(difference, batch.input_ids.device)
        if difference <= tolerance:
            return f"Loss path {path.name}: {path.reason}; loss and gradients equal the full logits' to {difference:.1e}."
        path = demote(model, f"{path.name} logits differ from the full ones by {difference:.1e} on the first batch{why}")


def verify_last_layer(model: nn.Module, batch: Batch, tolerance: float | None = None) -> str:
    """Let the last layer compute supervised positions only (`last_layer`), if a comparison on a part of `batch` allows it.

    Args:
        model: as it will be trained, whole in this process; `verify_head` has seen it.
        batch: any batch with supervised tokens.
        tolerance: as for `verify_head`.

    Returns:
        One sentence for the log; empty where nothing was to be compared.
    """
    path, sample, parts = head_path(model), _sample(batch), last_layer.parts(model)
    last_layer.switch(model, on=False)
    missing = _over_ranks(float(sample is None or not parts or path.name != "chunked"), batch.input_ids.device)
    if sample is None or missing:
        return ""
    tolerance = _tolerance(model, None) if tolerance is None else tolerance
    training = [module for module in model.modules() if module.training]
    model.eval()  # dropout would fall on other elements
    try:
        expected = _loss_and_gradients(model, sample, path)
        with last_layer.only_at(parts, supervised(sample).index, sample.input_ids.numel()):
            difference = _difference(expected, _loss_and_gradients(model, sample, path))
    except (RuntimeError, TypeError, ValueError):  # whatever a model of its own kind does with its modules
        difference = float("inf")
    finally:
        for module in training:
            module.training = True
    difference = _over_ranks(difference, batch.input_ids.device)
    if difference > tolerance:
        return ""
    last_layer.switch(model, on=True)
    return f"MLP and output projection of the last layer at these positions only, equal to {difference:.1e}."


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


def _token_loss(model: nn.Module, batch: Batch, path: HeadPath, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
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
    length = batch.input_ids.shape[1]
    extra: dict[str, Any] = {}
    columns = None
    if path.name == "selected" and takes_selection(model):
        # Positions that any row needs, counted from the end: prompt tuning puts virtual tokens in front.
        columns, where = torch.unique(index % length, return_inverse=True)
        extra["logits_to_keep"] = columns - length
    with (
        documents(model) if batch.documents is not None else whole_rows(),
        bypassed(model, path) if path.name == "chunked" else contextlib.nullcontext(),
        last_layer.reading(model, chosen.read if path.name == "chunked" else None, batch.input_ids.numel()),
    ):
        out: Tensor = model(input_ids=batch.input_ids, **forward_kwargs(batch), **extra).logits
    if columns is None:
        out = out[:, -length:]
    elif len(batch.input_ids) == 1:
        return out[0]
    else:
        index = index // length * len(columns) + where
    return out.reshape(-1, out.shape[-1]).index_select(0, index)


def _head_weights(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    head = head_module(model)
    assert head is not None, "the chunked way is only chosen for models with an output layer"
    linear: Any = head_linear(head)
    return linear.weight, linear.bias


def _plain_nll(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits.to(wide_dtype(logits.dtype)), targets, reduction="none", label_smoothing=smoothing)


def _num_rows(batch: Batch) -> int:
    # `rows` before documents: a packed row may end with a document that only fills it up.
    return len(batch.rows) or (len(batch.input_ids) if batch.documents is None else len(batch.documents) - 1)


def _rows(batch: Batch, index: Tensor) -> Tensor:
    """(N,) number of the row, or of the packed row's document, that each flat position belongs to."""
    if batch.documents is None:
        return index // batch.input_ids.shape[1]
    return torch.bucketize(index, torch.tensor(batch.documents[1:], device=index.device), right=True)


def _sample(batch: Batch) -> Batch | None:
    """A padded batch of at most two short pieces around the first targets of two rows; None without any target."""
    length = batch.input_ids.shape[1]
    index = supervised(batch).index
    pieces: list[tuple[int, int, int]] = []
    for row in torch.unique(_rows(batch, index)).tolist()[:_SAMPLE_ROWS]:
        first = int(index[_rows(batch, index) == row][0]) % length
        line, start, end = (row, 0, length) if batch.documents is None else (0, *batch.documents[row : row + 2])
        start = max(start, first - _SAMPLE_TOKENS // 2)
        pieces.append((line, start, min(end, start + _SAMPLE_TOKENS)))
    if not pieces:
        return None
    ids, labels = (
        nn.utils.rnn.pad_sequence([values[line, a:b] for line, a, b in pieces], batch_first=True, padding_value=fill)
        for values, fill in ((batch.input_ids, 0), (batch.labels, IGNORE_INDEX))
    )
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return Batch(ids, labels, positions, None, tuple(f"{line}:{a}" for line, a, _ in pieces))


def _tolerance(model: nn.Module, computes_in: torch.dtype | None) -> float:
    bits = [torch.finfo(p.dtype).bits for p in model.parameters() if p.is_floating_point()]
    if computes_in is not None:
        bits.append(torch.finfo(computes_in).bits)
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        bits.append(torch.finfo(torch.get_autocast_dtype(device)).bits)
    return {64: 1e-9, 32: 1e-3}.get(min(bits), 0.1)


def _loss_and_gradients(model: nn.Module, batch: Batch, path: HeadPath) -> list[Tensor | None]:
    """The mean loss and the gradient of every trained parameter (this rank's part of it); same dropout every time."""
    reshard(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in trained]
    device = batch.input_ids.device
    try:
        for p in trained:
            p.grad = None
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            total, count = _token_loss(model, batch, path)
            loss = total / count
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        return [loss.detach(), *(None if p.grad is None else _local(p.grad) for p in trained)]
    finally:
        for p, grad in zip(trained, before, strict=True):
            p.grad = grad


def _over_ranks(value: float, device: torch.device) -> float:
    """The largest value of all ranks: they have to go the same way, or FSDP's collectives would not meet."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return float(shared)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _difference(expected: list[Tensor | None], found: list[Tensor | None]) -> float:
    """Largest relative difference: of the loss, and of each gradient in norm (1 where one of the two is missing).

    Norms below a hundredth of the largest are measured against that: a key's bias, say, has a gradient of pure rounding.
    """
    norms = [0.0 if e is None else float(e.double().norm()) for e in expected]
    floor = max(norms[1:], default=0.0) / 100
    worst = 0.0
    for number, (e, f, norm) in enumerate(zip(expected, found, norms, strict=True)):
        other = 0.0 if f is None else float(f.double().norm())
        if (norm == 0) != (other == 0) and max(norm, other) > 1e-6 * floor:
            return 1.0
        if e is not None and f is not None and norm > 0:
            gap = float((e.double() - f.double()).norm()) / max(norm, floor if number else 0.0)
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst
