"""A server of OpenAI's chat completions that says its port and then behaves as the first part of the path says."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SEEN: dict[str, list[dict[str, Any]]] = {}
ASKED: Counter[tuple[str, str]] = Counter()
LOCK = threading.Lock()


def completion(text: str | None) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """What was asked of a behaviour."""
        self.answer(200, json.dumps(SEEN.get(self.path.strip("/"), [])).encode())

    def do_POST(self) -> None:
        how, _, path = self.path.strip("/").partition("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"].partition("Text:\n")[2]
        with LOCK:
            SEEN.setdefault(how, []).append({"path": path, "key": self.headers.get("Authorization"), **body})
            ASKED[how, text] += 1
            first = ASKED[how, text] == 1
        if how == "busy" and first:
            self.answer(429, b"{}", {"Retry-After": "0"})
        elif how == "hangup" and first:
            self.close_connection = True
        elif how == "broken":
            self.answer(500, b"no")
        elif how == "locked":
            self.answer(401, b'{"error": {"message": "Incorrect key"}}')
        elif how == "unknown":
            self.answer(404, f"no such model, said {self.headers['Authorization']}".encode())
        elif how == "moved":
            self.answer(302, b"", {"Location": "/good/v1/chat/completions"})
        elif how == "malformed":
            self.answer(200, b'{"choices": [')
        elif how == "page":
            self.answer(200, b"<html>Welcome</html>")
        elif how == "silent":
            self.answer(200, completion(None))
        elif how == "wordy":
            self.answer(200, completion(text + " indeed" * 200))
        elif how == "forgetful":
            self.answer(200, completion("Something without any figures"))
        elif how == "parrot":
            self.answer(200, completion(text.upper()))
        else:
            self.answer(200, completion(f'<think>Hm.</think>\n"Number {body["seed"]} in other words, {text}"'))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)

    def stop() -> None:
        """End with whoever started it."""
        sys.stdin.read()
        server.shutdown()

    threading.Thread(target=stop, daemon=True).start()
    server.serve_forever()
