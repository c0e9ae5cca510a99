"""What decides about each token of an answer: how it is chosen, when it is the last, when its text can be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    import queue
    import threading
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What a tokenizer decodes half a UTF-8 character to."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    max_new_tokens: int = 128
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0: always the most likely token; else logits are divided by it."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability in all (Holtzman et al. 2020); 1: from all."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0: from all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that occurred, also in the prompt, are divided (negative: multiplied) by it (Keskar et al. 2019)."""
    seed: int = 0
    """With the number of the prompt it decides the draws, so that they do not depend on the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "texts that are not empty, each on its own"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise UsageError(f"Expected --{name} to be {wanted}; got {getattr(self, name)}.")


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Chooser(LogitsProcessor):
    """Penalty, temperature, top-k, top-p and the draw, row by row, so that no row depends on its batch.

    The draw inverts the cumulative distribution at one uniform number per row and token, and leaves a single token to
    the greedy choice that follows.
    """

    def __init__(self, sampling: Sampling, starts: Tensor, width: int, numbers: Sequence[int]) -> None:
        self.sampling, self.starts, self.width = sampling, starts, width
        if sampling.temperature > 0:
            generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + number) for number in numbers]
            rows = [torch.rand(sampling.max_new_tokens, generator=g, dtype=torch.float64) for g in generators]
            self.uniform = torch.stack(rows).to(starts.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores from which the most likely token is to be taken."""
        if self.sampling.repetition_penalty != 1:
            scores = self._penalise(input_ids, scores)
        if self.sampling.temperature == 0:
            return scores
        return self._draw(scores / self.sampling.temperature, self.uniform[:, input_ids.shape[1] - self.width])

    def _penalise(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The penalty for tokens that occurred; padding did not occur."""
        real = torch.arange(input_ids.shape[1], device=input_ids.device) >= self.starts[:, None]
        seen = torch.zeros_like(scores).scatter_add_(1, input_ids, real.to(scores.dtype)) > 0
        penalty = self.sampling.repetition_penalty
        return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)

    def _draw(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """(B, V) scores and (B,) numbers in [0, 1) -> (B, V) scores with one finite entry per row."""
        ordered, order = scores.sort(dim=-1, descending=True)
        shares = ordered.double().softmax(-1)
        if self.sampling.top_k:
            shares[:, self.sampling.top_k :] = 0
        before = shares.cumsum(-1) - shares
        shares = shares.masked_fill(before >= self.sampling.top_p * shares.sum(-1, keepdim=True), 0)
        cumulative = shares.cumsum(-1)
        rank = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1).clamp_max((shares > 0).sum(-1) - 1)
        token = order.gather(1, rank[:, None])
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class StopText(StoppingCriteria):
    """Stops a row whose answer holds a stop text; looks at the last tokens only, a token being at least one byte."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], width: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, stop, width
        self.tail = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) whether the row is done."""
        tails = input_ids[:, max(self.width, input_ids.shape[1] - self.tail) :].tolist()
        texts = [decode(self.tokenizer, tail) for tail in tails]
        return torch.tensor([any(s in text for s in self.stop) for text in texts], device=input_ids.device)


class Closed(StoppingCriteria):
    """Stops when the reader of a stream went away."""

    def __init__(self, closed: threading.Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) the same for every row."""
        return torch.full((input_ids.shape[0],), self.closed.is_set(), device=input_ids.device)


class TokenQueue:
    """A streamer as `generate` wants it: the prompt comes first and is not passed on."""

    def __init__(self, tokens: queue.Queue[Any]) -> None:
        self.tokens, self.prompt = tokens, True

    def put(self, value: Tensor) -> None:
        """New token ids."""
        if not self.prompt:
            for token in value.flatten().tolist():
                self.tokens.put(token)
        self.prompt = False

    def end(self) -> None:
        """Nothing to do: the worker says when it is done."""


class Pieces:
    """From token ids to texts that can be shown, and that add up to the decoded whole without its stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.first = self.read = 0
        self.held, self.done = "", False

    def add(self, token: int) -> str:
        """What can be shown after one more token."""
        self.ids.append(token)
        return self._release(self._decoded(final=False), final=False)

    def rest(self) -> str:
        """What is left at the end."""
        return self._release(self._decoded(final=True), final=True)

    def _decoded(self, *, final: bool) -> str:
        """New text: decoded with the tokens before it, because a token's text may depend on them (leading spaces)."""
        known = decode(self.tokenizer, self.ids[self.first : self.read])
        text = decode(self.tokenizer, self.ids[self.first :])
        if len(text) <= len(known) or (text.endswith(BROKEN) and not final):
            return ""
        self.first, self.read = self.read, len(self.ids)
        return text[len(known) :]

    def _release(self, text: str, *, final: bool) -> str:
        """Text that is neither a stop text nor may become one."""
        if self.done:
            return ""
        self.held += text
        found = [at for stop in self.stop if (at := self.held.find(stop)) >= 0]
        if found:
            self.done = True
            return self.held[: min(found)]
        keep = 0
        if not final:
            keep = max((n for stop in self.stop for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown
