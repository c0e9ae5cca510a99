"""A client of endpoints that speak OpenAI's chat completions, for plugins that ask a model somewhere else."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from lightning_ft.errors import LightningFTError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 8
"""Requests at the same time."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try, unless the endpoint asks for more."""
LONGEST_PAUSE = 60.0
"""Seconds that an endpoint may ask for."""
TIMEOUT = 120.0
"""Seconds without a byte after which a request is tried again."""
KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable that holds the key; a key is never an argument, which other users of a machine could read."""
_MOST = 10_000_000  # bytes of an answer that are read
_PATH = "/chat/completions"


class EndpointError(LightningFTError):
    """The endpoint did not do what it should (exit code 1)."""


class _AgainError(Exception):
    """Worth another try."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        """None: it is an error as any other answer that is no success."""


@dataclass(frozen=True)
class ChatEndpoint:
    """A model behind a URL."""

    url: str
    """With or without `/v1` and `/chat/completions` at its end."""
    model: str
    key: str = field(default="", repr=False)
    """Empty: none is sent."""
    flag: str = "--url"
    """Where the user gave the URL, for messages; the model's is this with `_model`."""
    timeout: float = TIMEOUT
    """Seconds without a byte after which a request is tried again."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
            good = good and not re.search(r"[\s\x00-\x1f]", self.url)
            parts.port  # noqa: B018  # raises where it is no number
        except ValueError:
            good = False
        if not good:
            raise UsageError(
                f"Expected {self.flag} to be a URL as http://localhost:8000/v1, without user and password; check it."
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(
                f"Expected ${KEY_VARIABLE} to hold a key in plain letters, got other characters in it; set it again."
            )

    @property
    def address(self) -> str:
        """The URL that is asked."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        if not path.endswith(_PATH):
            path += _PATH if re.search(r"/v\d+$", path) else f"/v1{_PATH}"
        return parts._replace(path=path, fragment="").geturl()

    def ask(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The model's answer; empty where it has no text, as a refusal or a tool call.

        Args:
            messages: `role` and `content` of each turn.
            **options: Further fields of the request: `temperature`, `seed`, `max_tokens` ...

        Raises:
            EndpointError: it is not there, fails at every try, or answers in another format.
            UsageError: it refuses the key, the model or the request.
        """
        body = {"model": self.model, "messages": list(messages), **options}
        for pause in (*PAUSES, None):
            try:
                return self._content(self._post(body))
            except _AgainError as error:
                if pause is None:
                    raise self._failed(f"{error} {len(PAUSES) + 1} times; try again later") from None
                time.sleep(max(pause, min(error.wait, LONGEST_PAUSE)))
        raise AssertionError

    def _post(self, body: Mapping[str, Any]) -> bytes:
        """The answer to a request.

        Raises:
            _AgainError: too busy, broken down, or out of reach for the moment.
        """
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
                found: bytes = answer.read(_MOST)
                return found
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError, str)):
                why = getattr(cause, "strerror", None) or str(cause)
                raise self._failed(f"could not be reached ({self._quoted(why)}); start it, or check the URL") from None
            slow = f"did not answer within {self.timeout:g} seconds"
            said = slow if isinstance(cause, TimeoutError) else f"broke off the connection ({type(cause).__name__})"
            raise _AgainError(said) from None

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        """Sort an answer that is no success."""
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            raise _AgainError(f"answered {error.code} {error.reason}", _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            has = f"refused the key of ${KEY_VARIABLE}" if self.key else f"wants a key, and ${KEY_VARIABLE} has none"
            raise UsageError(f"Expected {self._place} to answer, but it {has} ({error.code}); set {KEY_VARIABLE}.") from None
        try:
            said = self._quoted(error.read(_MOST).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        raise UsageError(
            f"Expected {self._place} to answer, got {error.code} {error.reason}{f': {said}' if said else ''}; check the URL and"
            f" {self.flag}_model."
        ) from None

    def _content(self, answer: bytes) -> str:
        """The text of an answer."""
        try:
            content = json.loads(answer)["choices"][0]["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = self._quoted(answer.decode("utf-8", "replace"))
            raise self._failed(f"answered in another format: {said or 'nothing'}; name an OpenAI-compatible one") from None
        return content if isinstance(content, str) else ""

    @property
    def _place(self) -> str:
        """The address without a query, which may hold a key."""
        return self.address.partition("?")[0]

    def _failed(self, what: str) -> EndpointError:
        return EndpointError(f"Expected {self._place} to answer as OpenAI's chat completions, but it {what}.")

    def _quoted(self, text: str) -> str:
        """The beginning of what the endpoint said, without the key, in one line."""
        text = text.replace(self.key, "***") if self.key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def key_of_environment() -> str:
    """The key that `OPENAI_API_KEY` holds; empty: none."""
    return os.environ.get(KEY_VARIABLE, "").strip()


def side_by_side(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results of `work`, in order, several at a time.

    The threads end with the process: an interrupted command does not wait for open requests.
    """
    with ThreadPool(min(WORKERS, len(items)) or 1) as pool:
        yield from pool.imap(work, items)


def _seconds(value: str | None) -> float:
    """What `Retry-After` asks for in seconds; 0 for a date or nothing."""
    try:
        seconds = float(value or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
