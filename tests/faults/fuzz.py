"""Hostile and broken files: each document of a cache and a run with anything in place of a part, sealed or not."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparse_pipeline.shared.cache import open_cache
from sparse_pipeline.shared.cache.documents import read_documents
from sparse_pipeline.shared.cache.files import SEAL, sealed_bytes
from sparse_pipeline.shared.cache.verify import verify_cache
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.config.settings import load_yaml
from sparse_pipeline.shared.errors import PipelineError
from sparse_pipeline.shared.overview.describe import describe
from sparse_pipeline.shared.overview.status import status
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.shared.runs.samples import load_samples
from sparse_pipeline.shared.runs.verify import verify_run
from tests.faults.subjects import SITE

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**18), 0.5, 1e308, "", "x", "../../etc/passwd",
    "/etc/passwd", "a/b", "\0", "é" * 300, "<script>alert(1)</script>", [], [[]], {}, {"": None},
    [1] * 50, ["x"] * 3, {"n": 1},
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file with a part of it replaced."""
    if rng.random() < 0.35:
        return _bytes(data, rng)
    try:
        document = json.loads(data)
    except ValueError:
        return _bytes(data, rng)
    if not isinstance(document, dict):
        return _bytes(data, rng)
    sealed = document.pop(SEAL, None) is not None
    for _ in range(rng.randint(1, 2)):
        _replace(document, rng)
    return sealed_bytes(document) if sealed else json.dumps(document).encode()


def _replace(document: Any, rng: random.Random) -> None:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(document)
    if places:
        node, key = rng.choice(places)
        if isinstance(node, dict) and rng.random() < 0.2:
            del node[key]
        else:
            node[key] = copy.deepcopy(rng.choice(NASTY))  # it may be changed next


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]
    if kind == 2:
        return data[:at] + data[at + rng.randint(1, 60) :]
    if kind == 3:
        return b"[" * 100_000
    if kind == 4:
        return rng.randbytes(rng.randint(0, 300))
    return b""


def cache_readers(path: Path) -> list[Callable[[], object]]:
    """Everything that reads a cache."""

    def rows() -> None:
        cache = open_cache(path, allow_incomplete=True)
        for site in cache.sites:
            cache.stats(site)
            cache.outliers(site)
        _ = (cache.tokens, cache.flags)
        if SITE in cache.sites and cache.shards:
            cache.chunk(SITE, cache.shards[0])
        Vocabulary.of(cache).piece(3)

    return [
        rows,
        lambda: verify_cache(path),
        lambda: describe(path),
        lambda: str(status(path.parent, path.parent)),
        lambda: list(read_documents(path)),
    ]


def run_readers(path: Path) -> list[Callable[[], object]]:
    """Everything that reads a run."""

    def loaded() -> None:
        run = open_run(path, allow_incomplete=True)
        _ = (run.provenance, run.metrics(), run.note, run.load_checkpoint())
        if run.complete:
            run.load_coder()

    return [
        loaded,
        lambda: verify_run(path),
        lambda: describe(path),
        lambda: str(status(path.parent, path.parent)),
        lambda: load_samples(path),
        lambda: load_yaml(path / "config.yaml"),
    ]


def fuzz(
    path: Path, whole: dict[str, bytes], readers: list[Callable[[], object]], cases: int, seed: int
) -> Iterator[tuple[str, str]]:
    """(file, exception) of each reader that raised anything but an error of ours, over so many mutated files."""
    rng = random.Random(seed)
    names = [name for name in whole if name != ".lock" and "/c." not in name]
    for _ in range(cases):
        name = rng.choice(names)
        (path / name).write_bytes(mutated(whole[name], rng))
        for reader in readers:
            try:
                reader()
            except PipelineError:
                continue
            except Exception as error:
                yield name, f"{type(error).__name__}: {error}"
        (path / name).write_bytes(whole[name])
