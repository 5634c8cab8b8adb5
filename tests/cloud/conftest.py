"""A real S3 server on loopback: moto's, which `make test-cloud` installs. All tests here run there alone: whatever
else is on the machine, `make test` skips them."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cloud.proxy import Plan, Proxy

SERVER = os.environ.get("MOTO_SERVER")
"""The program, as `make test-cloud` names it."""

SECRET = "a-secret-that-nobody-may-see"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SERVER is not None:
        return
    for item in items:
        if "cloud" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="needs an S3 server: make test-cloud"))


@pytest.fixture(scope="session")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of the server; it has the bucket `bucket`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    with (tmp_path_factory.mktemp("moto") / "log").open("wb") as log:
        server = subprocess.Popen([str(SERVER), "-H", "127.0.0.1", "-p", str(number)], stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{number}/bucket", method="PUT")
                urllib.request.urlopen(request).close()
                break
            except OSError:
                assert server.poll() is None, "moto_server ended"
                time.sleep(0.1)
        yield number
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def server(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plan], Proxy]]:
    """Begins a proxy before the server that does what a plan says; the environment names it."""
    from sparse_pipeline.shared.cache import mirror
    from sparse_pipeline.shared.objects import store

    begun: list[Proxy] = []

    def begin(plan: Plan = lambda *_: None) -> Proxy:
        proxy = Proxy(port, plan).__enter__()
        begun.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store.forget()
        mirror.forget()
        return proxy

    for name, value in {
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "PIPELINE_MIRROR": str(tmp_path / "mirror"),
    }.items():
        monkeypatch.setenv(name, value)
    yield begin
    for proxy in begun:
        proxy.__exit__()
    store.forget()
    mirror.forget()
