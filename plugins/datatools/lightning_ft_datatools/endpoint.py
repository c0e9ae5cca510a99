"""Rephrasings by any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.endpoint import side_by_side
from lightning_ft_datatools.rephrasing import REQUEST, SAME, cleaned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning_ft.endpoint import ChatEndpoint
    from lightning_ft_datatools.ways import Job


@dataclass(frozen=True)
class Endpoint:
    """Rephrasings by a model behind a URL, several requests at a time."""

    chat: ChatEndpoint
    temperature: float
    max_new_tokens: int | None = None
    name: ClassVar[str] = "endpoint"
    rephrases: ClassVar[bool] = True
    unchanged: ClassVar[str] = SAME

    @property
    def details(self) -> Mapping[str, Any]:
        """Model and temperature."""
        return {"model": self.chat.model, "temperature": self.temperature}

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[str, ...]]:
        """The texts of each job in the model's words.

        Raises:
            EndpointError: it is not there, fails for good, or answers in another format.
            UsageError: it refuses the key, the model or the request.
        """
        return side_by_side(self._texts, jobs)

    def _texts(self, job: Job) -> tuple[str, ...]:
        return tuple(cleaned(text, self._answer(text, job)) for text in job.texts)

    def _answer(self, text: str, job: Job) -> str:
        limit = {} if self.max_new_tokens is None else {"max_tokens": self.max_new_tokens}
        messages = [{"role": "user", "content": REQUEST + text}]
        return self.chat.ask(messages, temperature=self.temperature, seed=(job.seed + job.copy) % 2**31, **limit)
