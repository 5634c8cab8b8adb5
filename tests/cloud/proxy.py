"""A proxy before a storage server: slow, answering 503, breaking connections off, losing answers, as it is told."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

SLOW, BUSY, REFUSED, RESET, LOST, CUT = "slow", "503", "403", "reset", "lost", "cut"

Plan = Callable[[int, str, str], str | None]
"""(number of the request, method, path) → what happens to it; None: nothing."""


class Seen(NamedTuple):
    """A request, and the status the server gave it (0: it never got there)."""

    method: str
    path: str
    fault: str | None
    status: int


class Proxy:
    """Forwards to a server; ``plan`` says which requests suffer what. Use with ``with``.

    Attributes:
        seen: every request.
        url: where it listens.
    """

    def __init__(self, port: int, plan: Plan = lambda *_: None) -> None:
        self.plan, self.seen, self._numbers = plan, list[Seen](), itertools.count()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def number(self) -> int:
        return next(self._numbers)

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: Proxy, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.plan(proxy.number(), self.command, self.path)
            if fault == SLOW:
                time.sleep(0.5)
            if fault == RESET:
                proxy.seen.append(Seen(self.command, self.path, fault, 0))
                return self._break_off()
            if fault in (BUSY, REFUSED):
                proxy.seen.append(Seen(self.command, self.path, fault, 0))
                return self._answer(int(fault), [], b"<Error><Code>SlowDown</Code></Error>")
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            proxy.seen.append(Seen(self.command, self.path, fault, answer.status))
            if fault == LOST:
                return self._break_off()
            return self._answer(answer.status, answer.getheaders(), data, cut=fault == CUT)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.wfile.flush()
                self._break_off()

        def _break_off(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # of the connection that was broken off
                super().handle()

    return Handler
