"""Trials: damage one file, repair, run the next command, compare with the undamaged bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparse_pipeline.shared.cache import open_cache
from sparse_pipeline.shared.cache.repair import repair_cache
from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.runs.repair import repair_run
from sparse_pipeline.shared.runs.verify import verify_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import train
from tests.faults.damage import KINDS
from tests.faults.subjects import QUANTISED, SITE, lost, restore, settings, train_run, write_cache
from tests.shared.cache.folders import contents


@dataclass
class Trial:
    """One damaged file: whether it was found, and what came back wrong after the repair."""

    kind: str
    file: str
    found: bool
    wrong: list[str]


def cache_trials(folder: Path, kinds: list[str], per_file: int, seed: int, every: int = 1) -> Iterator[Trial]:
    """Every n-th file of a cache, damaged in every way."""
    path = folder / "cache"
    write_cache(path)
    whole, rng = contents(path), random.Random(seed)
    for name in [one for one in whole if one != ".lock"][::every]:
        for kind in kinds:
            for _ in range(per_file):
                KINDS[kind](path / name, rng)
                done = repair_cache(path)
                if done.next is not None:
                    write_cache(path)
                now = contents(path)
                wrong = [one for one in whole.keys() | now.keys() if whole.get(one) != now.get(one)]
                yield Trial(
                    kind, name, not (done.found.ok and done.found.complete), wrong if done.ok else ["not repaired"]
                )
                if wrong:
                    restore(path, whole)


def run_trials(folder: Path, kinds: list[str], per_file: int, seed: int, every: int = 1) -> Iterator[Trial]:
    """Every n-th file of a finished run, damaged in every way."""
    train_run(folder)
    path = folder / "runs/run"
    whole, rng = contents(path), random.Random(seed)
    for name in [one for one in whole if one != ".lock"][::every]:
        for kind in kinds:
            for _ in range(per_file):
                KINDS[kind](path / name, rng)
                done = repair_run(path)
                if done.next is not None and done.ok:
                    train_run(folder)
                wrong = lost(path, whole) if done.ok else ["not repaired"]
                wrong += verify_run(path).problems
                yield Trial(kind, name, not (done.found.ok and done.found.complete), wrong)
                restore(path, whole)


def first_touches(folder: Path, flips: int, seed: int) -> Iterator[tuple[str, bool, bool]]:
    """(file, found by whoever reads its rows, found by training) for flipped bits in payloads."""
    path = folder / "cache"
    write_cache(path)
    whole, rng = contents(path), random.Random(seed)
    chunks = [name for name in whole if "/c." in name]
    rows = settings(folder)
    data = contents(folder / "data")
    trained_on = [name for name in data if (SITE in name and "/c." in name) or name.startswith("acts.zarr/flags/c.")]
    for _ in range(flips):
        name = rng.choice(chunks)
        _flip_payload(path / name, rng)
        seen = _raises(lambda: _read_all(path))
        (path / name).write_bytes(whole[name])
        name = rng.choice(trained_on)
        _flip_payload(folder / "data" / name, rng)
        stopped = _raises(lambda: _train_anew(rows))
        (folder / "data" / name).write_bytes(data[name])
        yield name, seen, stopped


def _train_anew(config: TrainConfig) -> None:
    taken = len(list(config.runs.glob("*")))
    train([replace(config, name=f"t{taken}", samples=None)])


def _flip_payload(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    at = rng.randrange((len(data) - 4) * 8)
    data[at // 8] ^= 1 << at % 8
    file.write_bytes(data)


def _read_all(path: Path) -> None:
    cache = open_cache(path)
    for array in (cache.tokens, cache.doc_id, cache.pos_in_doc, cache.flags):
        assert array.size
    for site in (SITE, QUANTISED):
        for shard in cache.shards:
            cache.chunk(site, shard)


def _raises(work: Callable[[], None]) -> bool:
    try:
        work()
    except DataError as error:
        return "damaged" in error.message
    return False
