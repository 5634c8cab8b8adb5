"""A stand-in for an endpoint with OpenAI's chat completions, on loopback: it answers as it is told to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], str | bytes]


@dataclass
class Server:
    """The server.

    Attributes:
        url: its base_url.
        reply: of each request (its number from 0 on, its body) the reply; `completion` makes a good one.
        asked: bodies, in the order of arrival; `times` and `keys` the moments and Authorization headers.
    """

    reply: Callable[[int, dict[str, Any]], Reply]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(text: str, read: int = 100, written: int = 10) -> Reply:
    """A chat completion."""
    usage = {"prompt_tokens": read, "completion_tokens": written}
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


def oracle(body: dict[str, Any]) -> str:
    """What a perfect judge of `worlds` says: labels by the word that is always marked, or ahead of the marks; verdicts
    by whether a window fits.
    """
    system, user = (one["content"] for one in body["messages"])
    if not system.startswith("A latent"):
        lines = user.split("Silent:")[0].splitlines()[1:]
        marked = [re.findall(r"<<(.*?)>>", line) for line in lines if line]
        words = {word for some in marked for mark in some for word in re.findall(r"w\d\d", mark)}
        return f"the word {words.pop()}" if len(words) == 1 else f"unclear ({len(user)})"
    label, _, listed = user.partition("\n\nExcerpts:\n")
    wanted = re.findall(r"w\d\d", label)
    verdicts = []
    for line in listed.splitlines():
        text = " ".join(re.findall(r"<<(.*?)>>", line)) if "marked tokens" in system else line
        verdicts.append(int(bool(wanted) and wanted[0] in text))
    return json.dumps(verdicts)


@contextmanager
def serving(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    """A server for as long as the block runs."""
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.asked)
                server.asked.append(body)
                server.times.append(time.monotonic())
                server.keys.append(self.headers.get("Authorization"))
            assert self.path == "/v1/chat/completions"
            status, headers, text = server.reply(number, body)
            data = text if isinstance(text, bytes) else text.encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the client has gone

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
