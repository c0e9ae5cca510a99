"""A server on this machine that speaks as much of the hub's protocol as it takes to download datasets and models."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

REVISION = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves `datasets` and `models`: by id, the content of each file by its path."""

    def __init__(
        self, datasets: Mapping[str, Mapping[str, bytes]], models: Mapping[str, Mapping[str, bytes]] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {"datasets": datasets, "models": models or {}}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/").split("/")
        sent = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        if path[0] not in self.server.repositories:  # a model's files are at owner/name/resolve
            path.insert(0, "models")
        files = self.server.repositories[path[0]].get("/".join(path[1:3]))
        if files is None:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if len(path) > 4 and path[3] in ("resolve", "tree", "revision") and path[4] not in ("main", REVISION):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Revision not found"})
        what, rest = (path[3] if len(path) > 3 else "revision"), "/".join(path[5:])
        if what == "resolve":
            return self._file(files.get(rest))
        if what == "tree":
            below = f"{rest}/" if rest else ""
            names = [name for name in files if name.startswith(below)]
            folders = {below + name.removeprefix(below).partition("/")[0] for name in names if "/" in name.removeprefix(below)}
            entries = [{"type": "directory", "path": folder, "size": 0, "oid": REVISION} for folder in sorted(folders)]
            return self._json(entries + [_entry(name, files[name]) for name in names if "/" not in name.removeprefix(below)])
        if what == "paths-info":
            asked = parse_qs(sent).get("paths") or json.loads(sent or "{}").get("paths", [])
            return self._json([_entry(name, files[name]) for name in asked if name in files])
        facts = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        name = {"id": "/".join(path[1:3]), "sha": REVISION, "lastModified": "2026-01-01T00:00:00.000Z"}
        return self._json({**facts, **name, "siblings": [{"rfilename": file} for file in files]})

    do_HEAD = do_POST = do_GET

    def _file(self, content: bytes | None) -> None:
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        return self._answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, code: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in {"X-Repo-Commit": REVISION, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing: what the client says is what the test reads."""


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
