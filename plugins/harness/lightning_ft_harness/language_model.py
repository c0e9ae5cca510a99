"""A loaded model as lm-evaluation-harness asks for one."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from lightning_ft.candidates import candidate_scores
from lightning_ft.data.collate import pad
from lightning_ft.engine.loss import score_rows
from lightning_ft.generation import batches_by_length, tracked
from lightning_ft.types import IGNORE_INDEX, Encoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.loading import Loaded

Request = tuple[Any, list[int], list[int]]
"""What the texts were (not read here), token ids of the context and of its continuation."""
BATCH_TOKENS = 8192
GENERATED_AT_ONCE = 8
"""Prompts that are answered together; in float32 the answers do not depend on it."""


class LanguageModel(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """lm-eval's own reading of texts, windows and stop texts, and its generation; likelihoods by our scoring.

    `HFLM` makes the logits of every position and sums them in the number format of the weights, so that in bf16 a likelihood
    moves by 0.1 with the size of the batch. Here a context is computed once for all its continuations, logits exist where a
    token is scored, and sums are float32 or wider. In float32 both agree to rounding.
    """

    def __init__(self, loaded: Loaded, max_length: int | None = None) -> None:
        config = getattr(loaded.model, "active_peft_config", None)
        self.soft = bool(getattr(config, "is_prompt_learning", False))
        with _tied(loaded.model):
            super().__init__(
                pretrained=loaded.model,
                backend="causal",
                tokenizer=loaded.tokenizer,
                # Behind a soft prompt a row would depend on its padding, because peft drops the positions.
                batch_size=1 if self.soft else GENERATED_AT_ONCE,
                max_length=max_length,
                softmax_dtype=torch.float32,
            )
        if self.soft and max_length is None:  # the virtual tokens take positions, too
            self._max_length = max(2, self.max_length - int(getattr(config, "num_virtual_tokens", 0)))

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """For each request: summed log-probability (nats) of the continuation, and whether greedy decoding would give it."""
        out: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        together: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            if not continuation:
                raise ValueError("a continuation without a token")
            if len(context) + len(continuation) > self.max_length:
                # Cut on the left. The whole row would be a token more than the model has positions.
                out[i] = super()._loglikelihood_tokens([requests[i]], disable_tqdm=True)[0]
            else:
                together.setdefault(tuple(context), []).append(i)
        shown = not disable_tqdm and sys.stderr.isatty()
        groups = [group for group in together.values() if len(group) > 1 and self._worth_sharing([requests[i] for i in group])]
        grouped = {i for group in groups for i in group}
        for group in tracked(groups, "continuations", shown=shown):
            scores = candidate_scores(self.model, [_encoded(requests[i]) for i in group])
            for i, score in zip(group, scores, strict=True):
                out[i] = score
        alone = [i for group in together.values() for i in group if i not in grouped]
        rows = [_encoded(requests[i]) for i in alone]
        for batch in tracked(batches_by_length([len(row.input_ids) for row in rows], BATCH_TOKENS), "scoring", shown=shown):
            padded = pad([rows[j] for j in batch], 0).to(self.device)
            for j, (nll, tokens, right) in zip(batch, score_rows(self.model, padded), strict=True):
                out[alone[j]] = (-nll, tokens == right)
        return out

    def _worth_sharing(self, group: Sequence[Request]) -> bool:
        """Whether the context, computed once, saves more than batches of equal length do; a soft prompt cannot be repeated."""
        return not self.soft and len(group[0][1]) >= max(len(continuation) for _, _, continuation in group)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: lm-eval would ask the hub about a name that a model in memory does not have."""
        return {}


@contextlib.contextmanager
def _tied(model: Any) -> Iterator[None]:
    """Within it the model ties no weights: it was loaded so, and `HFLM` would do it over an adapter's own embedding or head."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


def _encoded(request: Request) -> Encoded:
    """The row of a request, of which the continuation is scored."""
    _, context, continuation = request
    return Encoded([*context, *continuation], [*[IGNORE_INDEX] * len(context), *continuation], row="")
