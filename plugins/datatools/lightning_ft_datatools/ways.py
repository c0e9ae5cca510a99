"""The ways to make further rows, by the words that users type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REPHRASERS = ("templates", "local")
"""Values of `--rephrase` beside a URL."""
RATE = 0.05
"""Probability of a slip, unless said otherwise."""
TEMPERATURE = 0.7
"""Of models that rephrase, unless said otherwise."""


@dataclass(frozen=True)
class Job:
    """A further row to be made."""

    texts: tuple[str, ...]
    """What the user says in the row."""
    seed: int
    """From the user's seed, the way and the row's content, so that neither order nor other rows matter."""
    copy: int
    """0-based number among the copies of the row."""


class Way(Protocol):
    """How further rows come about."""

    @property
    def name(self) -> str:
        """What provenance and report call it."""

    @property
    def rephrases(self) -> bool:
        """Whether other words are what it is for; else its slips may be of case and white space only."""

    @property
    def unchanged(self) -> str:
        """Why a text comes back as it was."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What provenance says of it beside its name."""

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Sequence[str]]:
        """For each job, in order, as many texts as it has."""


def ways_of(
    rephrase: Sequence[str], model: str | None, noise: Sequence[str], *, rate: float | None = None, seed: int = 0,
    max_new_tokens: int | None = None, temperature: float | None = None,
) -> list[Way]:  # fmt: skip
    """The ways that were asked for, each once; nothing is loaded and nothing is sent yet.

    Args:
        rephrase: `templates`, `local` and URLs.
        model: of `local` or of the URL.
        noise: kinds of slips.
        rate: of slips; None: `RATE`.
        seed: of the local model.
        max_new_tokens: longest rephrasing of a model; None: what the endpoint has, 256 of a local model.
        temperature: of a model; None: `TEMPERATURE`.

    Raises:
        UsageError: no way, an unknown one, or options that do not fit.
    """
    from lightning_ft_datatools.noise import KINDS, Noise

    if not rephrase and not noise:
        raise UsageError("Expected --rephrase or --noise, got neither; type --rephrase templates, or --noise typo.")
    for kind in noise:
        if kind not in KINDS:
            raise UsageError(f"Expected --noise to be of {', '.join(KINDS)}; got '{kind}'.{did_you_mean(kind, KINDS)}")
    if rate is not None and not noise:
        raise UsageError("Expected --noise_rate together with --noise, whose rate it is; got it alone.")
    if rate is not None and not 0 <= rate <= 1:
        raise UsageError(f"Expected --noise_rate to be a probability from 0 to 1; got {rate}.")
    ways = _rephrasers(list(dict.fromkeys(rephrase)), model, seed, max_new_tokens, temperature)
    return [*ways, *(Noise(kind, RATE if rate is None else rate) for kind in dict.fromkeys(noise))]


def _rephrasers(
    names: Sequence[str], model: str | None, seed: int, max_new_tokens: int | None, temperature: float | None
) -> list[Way]:
    from lightning_ft.endpoint import ChatEndpoint, key_of_environment
    from lightning_ft_datatools.endpoint import Endpoint
    from lightning_ft_datatools.rephrasing import Local
    from lightning_ft_datatools.wording import Templates

    asked = [name for name in names if name != "templates"]
    for name in asked:
        if name != "local" and not name.startswith(("http://", "https://")):
            hint = did_you_mean(name, REPHRASERS)
            raise UsageError(f"Expected --rephrase to be {', '.join(REPHRASERS)} or a URL (http://...); got '{name}'.{hint}")
    if len(asked) > 1:
        raise UsageError(
            f"Expected --rephrase to name one model, got '{asked[0]}' and '{asked[1]}'; make the second file later."
        )
    if asked and not model:
        raise UsageError(f"Expected --rephrase_model NAME together with --rephrase {asked[0]}, got none; name the model.")
    given = {"--rephrase_model": model, "--max_new_tokens": max_new_tokens, "--temperature": temperature}
    for flag, value in given.items():
        if value is not None and not asked:
            raise UsageError(f"Expected {flag} together with --rephrase local or a URL, whose model it is of; got it alone.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"Expected --max_new_tokens to be at least 1; got {max_new_tokens}.")
    heat = TEMPERATURE if temperature is None else temperature
    if not 0 <= heat < float("inf"):
        raise UsageError(f"Expected --temperature to be at least 0; got {heat}.")
    ways: list[Way] = []
    for name in names:
        if name == "templates":
            ways.append(Templates())
        elif name == "local":
            ways.append(Local(str(model), heat, max_new_tokens or 256, seed))
        else:
            chat = ChatEndpoint(name, str(model), key_of_environment(), flag="--rephrase")
            ways.append(Endpoint(chat, heat, max_new_tokens))
    return ways
