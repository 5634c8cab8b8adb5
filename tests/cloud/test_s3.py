"""Caches on a real S3 server: writers that meet, die and are answered badly; readers through broken connections."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparse_pipeline import pipeline
from sparse_pipeline.shared.cache import open_cache, verify_cache
from sparse_pipeline.shared.errors import PipelineError
from tests.cloud.conftest import SECRET
from tests.cloud.proxy import BUSY, CUT, LOST, REFUSED, RESET, SLOW, Plan, Proxy
from tests.cloud.writer import SITES, main
from tests.shared.cache.buckets import stored
from tests.shared.cache.folders import contents

pytest.importorskip("obstore")

_numbers = itertools.count()

Server = Callable[..., Proxy]


@pytest.fixture
def address() -> str:
    return f"s3://bucket/caches/{next(_numbers)}"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that every writer writes, in a folder: 16 shards."""
    path = tmp_path_factory.mktemp("local") / "c"
    main(str(path))
    return path


def start(root: Path, mirror: Path, *arguments: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.cloud.writer", *map(str, arguments)]
    return subprocess.Popen(words, cwd=root, env={**os.environ, "PIPELINE_MIRROR": str(mirror)}, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes], code: int = 0) -> None:
    _, errors = process.communicate()
    assert process.returncode == code, errors.decode()


def same(address: str, local: Path) -> bool:
    return stored(address) == {name: data for name, data in contents(local).items() if not name.startswith(".lock")}


def every(n: int, *faults: str, method: str | None = None) -> Plan:
    """Every n-th request suffers the faults in turn."""
    turn = itertools.cycle(faults)
    return lambda number, verb, _: next(turn) if number % n == n - 1 and method in (None, verb) else None


def test_two_writers_and_bad_answers(server: Server, address: str, local: Path, root: Path, tmp_path: Path) -> None:
    """Two ranks on two machines; every fifth request is slow, refused for now, broken off or its answer lost."""
    proxy = server(every(5, SLOW, BUSY, RESET, LOST, CUT))
    writers = [start(root, tmp_path / f"machine{rank}", address, rank, 2) for rank in (0, 1)]
    for writer in writers:
        ended(writer)
    main(address)  # whoever ended last finished it; then this changes nothing
    assert {one.fault for one in proxy.seen} >= {SLOW, BUSY, RESET, LOST}
    assert same(address, local)
    assert verify_cache(address).ok


def test_two_writers_that_know_nothing_of_each_other(
    server: Server, address: str, local: Path, root: Path, tmp_path: Path
) -> None:
    """Both begin every shard; each commit and each chunk file is created once."""
    proxy = server()
    writers = [start(root, tmp_path / f"machine{n}", address) for n in (0, 1)]
    for writer in writers:
        ended(writer)
    created = Counter(one.path for one in proxy.seen if one.method == "PUT" and one.status == 200)
    assert {n for path, n in created.items() if re.search(r"commits/|/c\.\d|plan\.json", path)} == {1}
    assert any(one.status == 412 for one in proxy.seen), "they met"
    assert same(address, local)


def test_a_lost_writer_is_taken_over(server: Server, address: str, local: Path, root: Path, tmp_path: Path) -> None:
    server(every(7, LOST))
    lost, other = start(root, tmp_path / "lost", address, 1, 2, 5), start(root, tmp_path / "other", address, 0, 2)
    ended(lost, -signal.SIGKILL)
    ended(other)
    begun = open_cache(address, allow_incomplete=True)
    assert begun.shards == [0, 1, 2, 3, 4, 6, 8, 10, 12, 14], "nothing of the shard it died in"
    assert "acts.zarr/layer_01.resid_mid/c.5.0" in stored(address)
    server()
    main(address)
    assert same(address, local)
    assert verify_cache(address).ok


def test_reading_through_broken_connections(server: Server, address: str, local: Path) -> None:
    server()
    main(address)
    proxy = server(every(4, CUT, RESET, BUSY, SLOW, method="GET"))
    os.environ["PIPELINE_MIRROR"] += "-of-a-reader"
    far, near = open_cache(address), open_cache(local)
    for site in SITES:
        for shard in near.shards:
            assert torch.equal(far.chunk(site, shard), near.chunk(site, shard))
    assert {CUT, RESET, BUSY} <= {one.fault for one in proxy.seen}


def test_what_is_said_when_the_storage_refuses(
    server: Server, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server(lambda *_: REFUSED)
    with pytest.raises(PipelineError, match="refuses the credentials") as caught:
        open_cache(address)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value.hint)
    assert pipeline.run(["inspect", address]) == 1
    server()
    assert pipeline.run(["inspect", "s3://no-such-bucket/x"]) == 1
    assert "no such bucket" in capsys.readouterr().err
    assert pipeline.run(["inspect", address]) == 3
    said = capsys.readouterr()
    assert f"not found: {address}" in said.err or f"no cache at {address}" in said.err
    assert SECRET not in said.err + said.out + str(caught.value) + str(caught.value.hint)


def test_no_credential_is_written(server: Server, address: str, tmp_path: Path) -> None:
    server()
    main(address)
    assert not [name for name, data in stored(address).items() if SECRET.encode() in data or b"an-id" in data]
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
