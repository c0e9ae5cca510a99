"""The local server of a rating's page: for this machine, whoever knows the address, and pages of its own only."""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import threading
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import LightningFTError, UsageError
from lightning_ft_compare.rating.folder import ASKED
from lightning_ft_compare.rating.page import page, policy

if TYPE_CHECKING:
    from lightning_ft_compare.rating.session import Session

HOST = "127.0.0.1"
MOST_BYTES = 10_000
"""Of a request's body."""


class RatingServer(ThreadingMixIn, TCPServer):
    """Serves one page under a random path, and what it asks for.

    Args:
        session: What is asked; all requests share it, one at a time.
        port: 0: a free one.

    Raises:
        UsageError: the port cannot be had.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, session: Session, port: int) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.turn = threading.Lock()
        self.over = False
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"Could not listen on {HOST}:{port}: {error.strerror or error}; name another --port, or 0 for a free one."
            ) from None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser may call this server; another name would be a page of somebody else's that leads here."""
        return (f"{HOST}:{self.port}", f"localhost:{self.port}")

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        session, view = self.session, self.session.view
        return {
            "view": asdict(view) if view else None, "answered": session.answered, "total": session.total, "over": self.over,
        }  # fmt: skip

    def act(self, step: str, do: str) -> None:
        """Do what the page says of the question `step`; of another one it is not meant, and nothing happens.

        Raises:
            LightningFTError: the disk takes no more.
        """
        view = self.session.view
        if self.over or step != (view.step if view else ""):
            return
        if do == "back":
            self.session.back()
        elif do == "stop":
            self.over = True
        elif view is not None and do == "skip":
            self.session.skip()
        elif view is not None:
            self.session.answer(next(choice for choice in ASKED if choice == do))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to tell."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request, and its connection with it."""

    server: RatingServer
    server_version, sys_version = "lightning-ft", ""
    timeout = 60

    def do_GET(self) -> None:
        """The page, and what it shows."""
        if not self._allowed():
            return
        if self._path() == "":
            nonce = secrets.token_urlsafe(16)
            self._send(HTTPStatus.OK, page(nonce).encode(), "text/html; charset=utf-8", policy(nonce))
        elif self._path() == "state":
            with self.server.turn:
                self._send_json(HTTPStatus.OK, self.server.state())
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """An answer."""
        if not self._allowed():
            return
        length = self.headers.get("Content-Length", "")
        if self._path() != "act":
            self._refuse(HTTPStatus.NOT_FOUND)
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        elif not length.isdecimal() or int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._act(self.rfile.read(int(length)))

    def _act(self, body: bytes) -> None:
        try:
            values = json.loads(body)
            step, do = str(values["step"]), str(values["do"])
            if do not in (*ASKED, "skip", "back", "stop"):
                raise ValueError(do)
        except (ValueError, LookupError, TypeError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        with self.server.turn:
            try:
                self.server.act(step, do)
            except LightningFTError as error:
                self._send_json(HTTPStatus.INSUFFICIENT_STORAGE, {"error": str(error)})
                return
            self._send_json(HTTPStatus.OK, self.server.state())
            if self.server.over:  # by a thread, as it waits for the loop that this request may hold up
                threading.Thread(target=self.server.shutdown).start()

    def _allowed(self) -> bool:
        """Whether the request comes from the page: by this server's own name, and from no other site."""
        origin = self.headers.get("Origin")
        own = [f"http://{host}" for host in self.server.hosts]
        if self.headers.get("Host") not in self.server.hosts or (origin not in own and (origin or self.command == "POST")):
            self._refuse(HTTPStatus.FORBIDDEN)
        elif self._path() is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            return True
        return False

    def _path(self) -> str | None:
        """What follows the token; None without the right one."""
        parts = self.path.split("/", 2)
        right = len(parts) == 3 and hmac.compare_digest(parts[1].encode("utf-8", "replace"), self.server.token.encode())
        return parts[2] if right else None

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, b"", "text/plain; charset=utf-8", policy(""))

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", policy(""))

    def _send(self, status: HTTPStatus, body: bytes, kind: str, rules: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": rules,
            "Cache-Control": "no-store", "Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the rater's."""


def serve(session: Session, port: int) -> None:
    """Serve the page until its rater stops."""
    with RatingServer(session, port) as server:
        print(f"Rate at {server.address} (Ctrl-C stops; what was answered is kept)", flush=True)
        server.serve_forever(poll_interval=0.1)
