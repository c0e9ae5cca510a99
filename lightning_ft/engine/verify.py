"""Ways of the hot path that are compared with plainer ones, loss and gradients, before a run relies on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_ft.data.collate import pack
from lightning_ft.data.prefix import share_each
from lightning_ft.data.targets import row_numbers, supervised
from lightning_ft.engine import last_layer
from lightning_ft.engine.attention import packs_documents
from lightning_ft.engine.head import HeadPath, demote, head_path
from lightning_ft.engine.loss import loss_by
from lightning_ft.engine.model import evaluating, reshard
from lightning_ft.errors import TrainingError, out_of_memory
from lightning_ft.types import IGNORE_INDEX, Batch, Encoded

_SAMPLE_TOKENS = 32
_SAMPLE_ROWS = 2
_PIECE = 1 << 22
"""Numbers that are wide at a time."""


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
    expected: list[Tensor | None] | None = None
    while True:
        if path.name == "full":
            return f"Loss path full: {path.reason}."
        why, difference, short = "", float("inf"), False
        try:
            if expected is None:
                expected = _loss_and_gradients(model, sample, HeadPath("full", ""))
            difference = _difference(expected, _loss_and_gradients(model, sample, path))
        except (RuntimeError, TypeError, ValueError) as error:
            why, short = f" ({type(error).__name__}: {error})", out_of_memory(error)
            if expected is None and not short:
                raise  # by the plain way, too
        if _over_ranks(float(short), batch.input_ids.device):
            return f"Loss path {path.name}: {path.reason} (not compared with the full logits: there is no memory for that)."
        difference = _over_ranks(difference, batch.input_ids.device)
        if difference <= tolerance:
            return f"Loss path {path.name}: {path.reason}; loss and gradients equal the full logits' to {difference:.1e}."
        path = demote(model, f"{path.name} logits differ from the full ones by {difference:.1e} on the first batch{why}")


def verify_last_layer(model: nn.Module, batch: Batch) -> str:
    """Let the last layer compute supervised positions only (`last_layer`), if a comparison on a part of `batch` allows it.

    Args:
        model: as it will be trained, whole in this process; `verify_head` has seen it.
        batch: any batch with supervised tokens.

    Returns:
        One sentence for the log; empty where nothing was to be compared.
    """
    path, sample, parts = head_path(model), _sample(batch), last_layer.parts(model)
    last_layer.switch(model, on=False)
    missing = _over_ranks(float(sample is None or not parts or path.name != "chunked"), batch.input_ids.device)
    if sample is None or missing:
        return ""
    try:
        with evaluating(model):
            expected = _loss_and_gradients(model, sample, path)
            with last_layer.only_at(parts, supervised(sample).index, sample.input_ids.numel()):
                difference = _difference(expected, _loss_and_gradients(model, sample, path))
    except (RuntimeError, TypeError, ValueError):  # whatever a model of its own kind does with its modules
        difference = float("inf")
    difference = _over_ranks(difference, batch.input_ids.device)
    if difference > _tolerance(model, None):
        return ""
    last_layer.switch(model, on=True)
    return f"MLP and output projection of the last layer at these positions only, equal to {difference:.1e}."


def verify_shared(model: nn.Module, prefix: int, vocabulary: int, *, pairs: bool = False) -> float | None:
    """Whether what packed documents begin with may be computed only once (`data.prefix`), by a comparison on random rows.

    Args:
        model: as it will be trained, whole in this process; `verify_head` and the check of packing have seen it.
        prefix: tokens that all rows, or both texts of a pair, begin with; 0: there is nothing to share.
        vocabulary: token ids are drawn below it.
        pairs: whether it is the texts of a pair.

    Returns:
        The largest relative difference; None where it may not.
    """
    if not prefix or not packs_documents(model) or drops(model):
        return None
    device, path = next(model.parameters()).device, head_path(model)
    tokens = min(prefix, _SAMPLE_TOKENS)
    plain = _begun_alike(tokens, vocabulary, pairs=pairs).to(device)
    once = share_each(plain.to("cpu"), [0, tokens, 0 if pairs else tokens, tokens]).to(device)
    try:
        expected = _loss_and_gradients(model, plain, path)
        difference = _difference(expected, _loss_and_gradients(model, once, path))
    except (RuntimeError, TypeError, ValueError, TrainingError):  # its layers do not pass on what attention has to know
        difference = float("inf")
    difference = _over_ranks(difference, device)
    # Norms of many families are float32 in any case.
    return None if difference > max(_tolerance(model, None), 1e-6) else difference


def _begun_alike(prefix: int, vocabulary: int, *, pairs: bool) -> Batch:
    """Four packed documents of random tokens, of which all, or two each, are the same up to `prefix`; the rest is trained."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate((9, 5, 14, 3)):
        if number == 0 or (pairs and number == 2):
            common = torch.randint(vocabulary, (prefix,), generator=draw).tolist()
        own = torch.randint(vocabulary, (length,), generator=draw).tolist()
        rows.append(Encoded(common + own, [IGNORE_INDEX] * prefix + own, f"{number}"))
    batch = pack(rows)
    batch.together = 2 if pairs else 1
    return batch


def drops(model: nn.Module) -> bool:
    """Whether the model has dropout: each document's beginning would have its own."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0) or float(getattr(module, "attention_dropout", 0) or 0) > 0
        for module in model.modules()
    )


def _sample(batch: Batch) -> Batch | None:
    """A padded batch of at most two short pieces around the first targets of two rows; None without any target."""
    length = batch.input_ids.shape[1]
    index = supervised(batch).index
    pieces: list[tuple[int, int, int]] = []
    for row in torch.unique(row_numbers(batch, index)).tolist()[:_SAMPLE_ROWS]:
        first = int(index[row_numbers(batch, index) == row][0]) % length
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
            total, count = loss_by(model, batch, path)
            loss = total / count
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        return [loss.detach(), *(None if p.grad is None else _local(p.grad) for p in trained)]
    finally:
        for p, grad in zip(trained, before, strict=True):
            p.grad = grad


def _norm(one: Tensor, other: Tensor | None = None) -> float:
    """The 2-norm of a tensor, or of its difference to another, in float64; piece by piece, as there may be little room."""
    one, other = one.flatten(), None if other is None else other.flatten()
    total = 0.0
    for start in range(0, len(one), _PIECE):
        piece = slice(start, start + _PIECE)
        wide = one[piece].double() if other is None else one[piece].double() - other[piece].double()
        total += float(wide.square().sum())
    return math.sqrt(total)


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
    norms = [0.0 if e is None else _norm(e) for e in expected]
    floor = max(norms[1:], default=0.0) / 100
    worst = 0.0
    for number, (e, f, norm) in enumerate(zip(expected, found, norms, strict=True)):
        other = 0.0 if f is None else _norm(f)
        if (norm == 0) != (other == 0) and max(norm, other) > 1e-6 * floor:
            return 1.0
        if e is not None and f is not None and norm > 0:
            gap = _norm(e, f) / max(norm, floor if number else 0.0)
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst
