"""Rephrasings by models: what they are asked, what of their answers is taken, and a local model as the one that is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft_datatools.noise import protected
from lightning_ft_datatools.records import folded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning_ft_datatools.ways import Job

REQUEST = (
    "Say the text below in other words. Keep its meaning and its language; keep names, numbers, links, quotations, code and "
    "what stands in braces exactly as they are. Do not answer it and do not explain anything: write the new text only.\n\n"
    "Text:\n"
)
"""What a model is asked; the text follows."""
SAME = "the same as the original"
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_QUOTES = {'"': '"', "\u201c": "\u201d", "'": "'", "`": "`"}
_CHUNK = 64
"""Texts that a local model is given at once, between two steps of the progress bar."""


def cleaned(text: str, answer: str) -> str:
    """A model's answer without its thoughts, and without quotation marks that the text did not have."""
    out = _THOUGHT.sub("", answer).strip()
    if len(out) > 1 and _QUOTES.get(out[0]) == out[-1] and text.strip()[:1] != out[0]:
        out = out[1:-1].strip()
    return out


def why_refused(text: str, new: str) -> str | None:
    """What speaks against a rephrasing, or None."""
    if not new.strip():
        return "empty"
    if folded(new) == folded(text):
        return SAME
    if len(new) > 3 * len(text) + 200:
        return "far too long"
    if any(text[start:end].strip() not in new for start, end in protected(text)):
        return "lost a number, a link, a quotation, code or a placeholder"
    return None


@dataclass(frozen=True)
class Local:
    """Rephrasings by a model of this machine: everything that `--model` of lightning-ft may name."""

    model: str
    temperature: float
    max_new_tokens: int
    seed: int
    name: ClassVar[str] = "local"
    rephrases: ClassVar[bool] = True
    unchanged: ClassVar[str] = SAME

    def __post_init__(self) -> None:
        from lightning_ft.loading import locate

        try:
            locate(self.model)
        except UsageError as error:
            raise UsageError(str(error).replace("--model", "--rephrase_model")) from error

    @property
    def details(self) -> Mapping[str, Any]:
        """Model and temperature."""
        return {"model": self.model, "temperature": self.temperature}

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[str, ...]]:
        """The texts of each job in the model's words."""
        answers = self._answers([text for job in jobs for text in job.texts])
        for job in jobs:
            yield tuple(cleaned(text, next(answers)) for text in job.texts)

    def _answers(self, texts: Sequence[str]) -> Iterator[str]:
        from lightning_ft.generation import Sampling, generate_texts
        from lightning_ft.loading import load
        from lightning_ft.types import Message

        loaded = load(self.model)
        prompts = [loaded.template.prompt((Message("user", REQUEST + text),)) for text in texts]
        for start in range(0, len(prompts), _CHUNK):
            sampling = Sampling(self.max_new_tokens, self.temperature, seed=self.seed + start)
            chunk = prompts[start : start + _CHUNK]
            yield from generate_texts(loaded.model, loaded.tokenizer, chunk, sampling, stop_tokens=loaded.stop_tokens)
