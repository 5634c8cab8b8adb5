"""A stand-in for the Hugging Face hub on this machine: keeps what is committed, and gives it back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repositories by name, each path → bytes, and what was requested."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[tuple[str, str]] = []
        self.address = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Quiet."""

        def answer(
            self, body: Any, status: int = 200, headers: dict[str, str] | None = None, send: bool = True
        ) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if send:
                self.wfile.write(data)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            body = self.body()
            hub.requests.append(("POST", self.path))
            if self.headers.get("Authorization") != "Bearer secret":
                return self.answer({"error": "Invalid credentials"}, 401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'you'}/{asked['name']}"
                hub.repos.setdefault(repo, {})
                hub.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
                return self.answer({"url": f"{hub.address}/{repo}", "name": repo, "id": repo})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if match := re.fullmatch(r"/api/models/(.+?/.+?)/preupload/main", self.path):
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            if match := re.fullmatch(r"/api/models/(.+?/.+?)/commit/main", self.path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        value = line["value"]
                        hub.repos[match[1]][value["path"]] = base64.b64decode(value["content"])
                address = f"{hub.address}/{match[1]}/commit/{SHA}"
                return self.answer({"success": True, "commitUrl": address, "commitOid": SHA, "hookOutput": ""})
            return self.answer({"error": "not found"}, 404)

        def do_GET(self, send: bool = True) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", path):
                if match[1] not in hub.repos:
                    return self.answer({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                files = hub.repos[match[1]]
                if match[2] and match[2].startswith("/tree"):
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()
                    ]
                    return self.answer(tree)
                listed = [{"rfilename": name} for name in files]
                return self.answer({"id": match[1], "sha": SHA, "siblings": listed, "private": False})
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                data = hub.repos.get(match[1], {}).get(match[2])
                if data is None:
                    return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"}, send)
                etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA}
                return self.answer(data, 200, etag, send)
            return self.answer({"error": "not found"}, 404, send=send)

        def do_HEAD(self) -> None:
            self.do_GET(send=False)

    return Handler


@contextmanager
def stand_in() -> Iterator[Hub]:
    """A server on the loopback address, for the length of a block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
