"""A local server of OpenAI's chat completions that behaves well or badly as the first part of the path says.

`busy` and `hangup` fail at the first request of a text and answer at the second; `broken`, `locked`, `unknown`, `moved`,
`malformed`, `page`, `silent` and `slow` always do what they are called; every other word is answered with the text that the
test gives for it.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Answer = Callable[[str, dict[str, Any]], str]

LONGEST = 60.0
"""Seconds that `slow` waits where nobody ends the server."""


def completion(text: str | None) -> bytes:
    """An answer as the protocol has it."""
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()


class ChatServer:
    """The server while its `with` block runs, in threads of this process."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        """From the behaviour and the request's fields to the text that comes back."""
        self._seen: dict[str, list[dict[str, Any]]] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def root(self) -> str:
        """The URL before the behaviour: `f"{server.root}/busy/v1"`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def seen(self, how: str) -> list[dict[str, Any]]:
        """The requests of a behaviour: their fields, and `path` (after the behaviour) and `key`."""
        with self._lock:
            return list(self._seen.get(how, []))

    def reply(self, how: str, path: str, key: str | None, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]] | None:
        """Status, body and headers of an answer; None: the connection is cut."""
        with self._lock:
            self._seen.setdefault(how, []).append({"path": path, "key": key, **body})
            text = json.dumps(body["messages"])
            self._asked[how, text] += 1
            first = self._asked[how, text] == 1
        if how == "slow":
            self._over.wait(LONGEST)
            return None
        if how == "hangup" and first:
            return None
        if how == "busy" and first:
            return 429, b"{}", {"Retry-After": "0"}
        fixed: dict[str, tuple[int, bytes, dict[str, str]]] = {
            "broken": (500, b"no", {}),
            "locked": (401, b'{"error": {"message": "Incorrect key"}}', {}),
            "unknown": (404, f"no such model, said {key}".encode(), {}),
            "moved": (302, b"", {"Location": "/good/v1/chat/completions"}),
            "malformed": (200, b'{"choices": [', {}),
            "page": (200, b"<html>Welcome</html>", {}),
            "silent": (200, completion(None), {}),
        }
        return fixed.get(how) or (200, completion(self.answer(how, body)), {})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """Answer a request."""
                how, _, path = self.path.strip("/").partition("/")
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found = server.reply(how, path, self.headers.get("Authorization"), body)
                if found is None:
                    self.close_connection = True
                    return
                status, content, headers = found
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Not on the terminal."""

        return Handler
