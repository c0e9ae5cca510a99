"""Likelihoods of several answers to one prompt, the prompt computed once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lightning_ft.engine.head import takes_selection
from lightning_ft.generation import batches_by_length
from lightning_ft.types import IGNORE_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_ft.types import Encoded

MOST_LOGITS = 1 << 25
"""Logits that exist at a time (128 MB)."""
MOST_TOKENS = 8192
"""Tokens of a batch of whole variants, padding included."""


def candidate_likelihoods(model: Any, variants: Sequence[Encoded]) -> list[float]:
    """As `candidate_scores`, the likelihoods alone."""
    return [likelihood for likelihood, _ in candidate_scores(model, variants)]


def candidate_scores(model: Any, variants: Sequence[Encoded]) -> list[tuple[float, bool]]:
    """Log-likelihood (nats) of the supervised tokens of each variant, and whether each of them was the most likely one.

    The variants begin alike and end differently. What all of them begin with goes through the model once, if its cache is
    one of keys and values that can be repeated; other models (recurrent ones, soft prompts) get every variant whole. In
    float32 both ways give the same to rounding.

    Args:
        model: A causal language model in evaluation mode.
        variants: At least one; a variant without supervised tokens has likelihood 0.
    """
    shared = _shared(variants)
    with torch.no_grad():
        begun = _begun(model, variants[0].input_ids[:shared]) if shared else None
        return _whole(model, variants) if begun is None else _continued(model, variants, shared, begun)


def _shared(variants: Sequence[Encoded]) -> int:
    """How many tokens all variants begin with, up to the first supervised one."""
    most = min(next((i for i, y in enumerate(v.labels) if y != IGNORE_INDEX), len(v.labels) - 1) for v in variants)
    first = variants[0].input_ids
    return next((i for i in range(most) if any(v.input_ids[i] != first[i] for v in variants)), most)


def _begun(model: Any, ids: Sequence[int]) -> tuple[Any, Tensor] | None:
    """Keys and values of the common beginning, and (V,) logits of what follows it; None where they cannot be repeated."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return None
    device = next(model.parameters()).device
    last: dict[str, int] = {"logits_to_keep": 1} if takes_selection(model) else {}
    out = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=True, **last)
    cache = getattr(out, "past_key_values", None)
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return cache, out.logits[0, -1]


def _whole(model: Any, variants: Sequence[Encoded]) -> list[tuple[float, bool]]:
    """Scores of variants that go through the model from their first token on, as rows of an evaluation do."""
    from lightning_ft.data.collate import pad
    from lightning_ft.engine.loss import score_rows

    device = next(model.parameters()).device
    out: list[tuple[float, bool]] = [(0.0, True)] * len(variants)
    for members in batches_by_length([len(variant.input_ids) for variant in variants], MOST_TOKENS):
        found = score_rows(model, pad([variants[i] for i in members], 0).to(device))
        for i, (nll, tokens, right) in zip(members, found, strict=True):
            out[i] = (-nll, right == tokens)
    return out


def _continued(model: Any, variants: Sequence[Encoded], shared: int, begun: tuple[Any, Tensor]) -> list[tuple[float, bool]]:
    """Scores of what the variants have after their first `shared` tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    longest = max(len(v.input_ids) for v in variants) - shared
    size = max(1, MOST_LOGITS // (longest * vocabulary))
    out: list[tuple[float, bool]] = []
    for start in range(0, len(variants), size):
        out += _batch(model, variants[start : start + size], shared, begun)
    return out


def _batch(model: Any, variants: Sequence[Encoded], shared: int, begun: tuple[Any, Tensor]) -> list[tuple[float, bool]]:
    device = next(model.parameters()).device
    rests = [v.input_ids[shared:] for v in variants]
    width = max(len(rest) for rest in rests)
    ids = torch.tensor([[*rest, *[0] * (width - len(rest))] for rest in rests], device=device)
    labels = torch.tensor(
        [[*v.labels[shared:], *[IGNORE_INDEX] * (width - len(rest))] for v, rest in zip(variants, rests, strict=True)],
        device=device,
    )
    real = torch.tensor([[1] * (shared + len(rest)) + [0] * (width - len(rest)) for rest in rests], device=device)
    cache = copy.deepcopy(begun[0])
    cache.batch_repeat_interleave(len(variants))
    logits = model(input_ids=ids, attention_mask=real, past_key_values=cache, use_cache=True).logits
    # The first token of a rest follows from the common beginning.
    before = torch.cat([begun[1].expand(len(variants), 1, -1), logits[:, :-1]], dim=1)
    nll = F.cross_entropy(before.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    greedy = ((before.argmax(-1) == labels) | (labels == IGNORE_INDEX)).all(1)
    return list(zip((-nll.double().view(len(variants), -1).sum(1)).tolist(), greedy.tolist(), strict=True))
