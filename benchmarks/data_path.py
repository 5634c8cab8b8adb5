"""The data path against the disk's own rate, and against the readings people use instead of it.

    python -m benchmarks.data_path [--gb 4] [--folder .] [--device cpu] [--json FILE]

Writes a cache of two sites of random bits (d = 2304, bfloat16) of the given size below --folder, and measures on it, in
one run: writing (statistics, checksum, disk); sequential reads; blocks of 128 rows in random order, copied from a map
and read by `preadv`; the block-shuffled stream of `train.data` in each of its ways (on --device); random rows
through a memory map and through Zarr; the memory of a stream with a small limit. "Cold" means that the kernel
dropped the files' pages first (POSIX_FADV_DONTNEED). Then it trains a small TopK transcoder (d = 384, F = 3072,
k = 16, batch 1024) on batches that lie in memory already and on the stream of a cache on disk, turn by turn, and prints
what the stream costs. Everything it writes is removed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_pipeline.shared.cache import Cache, CacheWriter, Layout, SiteSpec, open_cache
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.cache.files import as_bytes, crc32c
from sparse_pipeline.shared.cache.stats import site_stats
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.stream import Stream, open_stream
from sparse_pipeline.train.samplers import Uniform, UniformConfig
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.begin import new_trainee

SITES = ("layer_08.resid_mid", "layer_08.mlp_out")
CTX = 64
BLOCK = 128
"""Rows of a block, as `train.data.block_rows`."""


def make_cache(path: Path, rows: int, width: int) -> tuple[Cache, dict[str, float]]:
    """A cache of random bits; average seconds that a shard cost: statistics, checksum, everything together."""
    specs = tuple(SiteSpec(site, width, module_path="-", layer=8, kind=site.split(".")[1]) for site in SITES)
    layout = Layout(rows // CTX, CTX, sites=specs)
    generator = torch.Generator().manual_seed(0)
    pool = {site: torch.randn(layout.shard_rows, width, generator=generator).bfloat16() for site in SITES}
    seqs = layout.seqs_per_shard
    rng = np.random.default_rng(0)
    flags = np.zeros((seqs, CTX), np.uint8)
    flags[:, 0] = 1
    spent = {"statistics": 0.0, "checksum": 0.0, "all": 0.0}
    with CacheWriter.create(
        path, layout, {"made_by": "benchmarks.data_path", "rows": rows, "width": width}, {}
    ) as writer:
        for shard in writer.missing_shards():
            n = len(layout.seqs_of(shard))
            doc = np.repeat(np.arange(shard * seqs, shard * seqs + n)[:, None] // 4, CTX, 1)
            tokens = rng.integers(0, 1000, (n, CTX), dtype=np.int32)
            acts = {site: values[: n * CTX].roll(shard, 0) for site, values in pool.items()}
            began = time.perf_counter()
            position = np.zeros((n, CTX), np.uint16)
            writer.write_shard(shard, tokens=tokens, doc_id=doc, pos_in_doc=position, flags=flags[:n], acts=acts)
            spent["all"] += time.perf_counter() - began
            for values in acts.values():
                stored = values.view(torch.uint16).numpy()
                began = time.perf_counter()
                site_stats(stored, CTX, flags[:n].reshape(-1))
                middle = time.perf_counter()
                crc32c(as_bytes(stored))
                spent["statistics"] += middle - began
                spent["checksum"] += time.perf_counter() - middle
        writer.finish()
    return open_cache(path), {name: seconds / layout.n_shards for name, seconds in spent.items()}


def chunk_files(cache: Cache) -> list[Path]:
    return [cache.chunk_file(site, shard)[0] for shard in cache.shards for site in SITES]


def drop_pages(cache: Cache) -> None:
    """Asks the kernel to forget the files (they are synced, so their pages are clean)."""
    for file in chunk_files(cache):
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_pages(cache: Cache) -> None:
    for file in chunk_files(cache):
        file.read_bytes()


def read_whole(file: Path, buffer: bytearray) -> int:
    total = 0
    with file.open("rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            total += count
    return total


def sequential(cache: Cache, threads: int) -> float:
    """Bytes per second of reading every chunk file from beginning to end, 8 MiB at a time."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(lambda file: read_whole(file, bytearray(8 << 20)), chunk_files(cache)))
    return total / (time.perf_counter() - began)


def blocks(cache: Cache, mapped: bool) -> float:
    """Bytes per second of copying every block of 128 rows into memory, in random order, on eight threads."""
    jobs = [
        (file, first * spec.row_bytes, BLOCK * spec.row_bytes)
        for shard in cache.shards
        for site, spec in cache.sites.items()
        for file in (cache.chunk_file(site, shard)[0],)
        for first in range(0, len(cache.layout.rows_of(shard)) - BLOCK + 1, BLOCK)
    ]
    order = np.random.default_rng(0).permutation(len(jobs))
    opened = {file: file.open("rb") for file in {file for file, _, _ in jobs}}
    maps = {f: mmap.mmap(h.fileno(), 0, access=mmap.ACCESS_READ) for f, h in opened.items()} if mapped else {}

    def copy(share: np.ndarray) -> int:
        buffer = np.empty(max(size for _, _, size in jobs), np.uint8)
        for number in share.tolist():
            file, at, size = jobs[number]
            if mapped:
                buffer[:size] = np.frombuffer(maps[file], np.uint8, size, at)
            else:
                os.preadv(opened[file].fileno(), [memoryview(buffer)[:size]], at)  # type: ignore[arg-type]
        return sum(jobs[number][2] for number in share.tolist())

    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(copy, np.array_split(order, 8 * 8)))
    taken = time.perf_counter() - began
    for handle in opened.values():
        handle.close()
    return total / taken


def stream_of(cache: Cache, device: str = "cpu", **settings: Any) -> Stream:
    config = DataConfig(**{"epochs": 1, "heldout": 0.0, "resident": False, **settings})
    return open_stream(cache, SITES, config, Uniform(UniformConfig()), device=device)


def shuffled(cache: Cache, device: str, **settings: Any) -> float:
    """Bytes per second of the stream when nothing is done with the batches."""
    row_bytes = sum(spec.row_bytes for spec in cache.sites.values())
    with stream_of(cache, device, **settings) as stream:
        began = time.perf_counter()
        rows = sum(len(batch) for batch in stream)
        if device != "cpu":
            torch.cuda.synchronize(device)
        return rows * row_bytes / (time.perf_counter() - began)


def random_rows(cache: Cache, seconds: float, read: Callable[[np.ndarray], Any], rows: int) -> float:
    """Bytes per second of batches of uniformly random rows, read by `read`, until the time is up."""
    rng = np.random.default_rng(0)
    row_bytes = sum(spec.row_bytes for spec in cache.sites.values())
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        read(rng.integers(0, cache.n_rows, rows))
        done += rows
    return done * row_bytes / (time.perf_counter() - began)


def through_maps(cache: Cache) -> Callable[[np.ndarray], Any]:
    return lambda index: [cache.rows(site, index) for site in SITES]


def through_zarr(cache: Cache) -> Callable[[np.ndarray], Any]:
    import zarr

    group: Any = zarr.open(str(cache.path / "acts.zarr"), mode="r")
    return lambda index: [group[site].oindex[np.unique(index)] for site in SITES]


def rates(cache: Cache, device: str, seconds: float, repeats: int) -> dict[str, dict[str, float]]:
    """Reading → {"cold", "warm"} → bytes per second, the median of the repeats."""
    pool_rows = max(8192, cache.n_rows // 8)
    ways: dict[str, Callable[[], float]] = {
        "sequential, 1 thread": lambda: sequential(cache, 1),
        "sequential, 8 threads": lambda: sequential(cache, 8),
        "blocks, copied from the map": lambda: blocks(cache, mapped=True),
        "blocks, preadv": lambda: blocks(cache, mapped=False),
        "stream, pools of 1/8 (preadv)": lambda: shuffled(cache, device, pool_rows=pool_rows),
        "stream, resident (read once, drawn once)": lambda: shuffled(cache, device, resident=True),
        "random rows, memory map": lambda: random_rows(cache, seconds, through_maps(cache), 256),
        "random rows, Zarr": lambda: random_rows(cache, seconds, through_zarr(cache), 16),
    }
    if device == "cpu":
        ways["stream, mapped"] = lambda: shuffled(cache, device, pool_rows=pool_rows, resident="mapped")
    found: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in ways}
    for _ in range(repeats):  # in turns, so that what else the machine does falls on all alike
        for name, measure in ways.items():
            drop_pages(cache)
            found[name]["cold"].append(measure())
            warm_pages(cache)
            found[name]["warm"].append(measure())
    return {name: {heat: statistics.median(r) for heat, r in both.items()} for name, both in found.items()}


def memory_of_a_small_stream(cache: Cache) -> dict[str, float]:
    """MB of anonymous memory that one epoch takes when the pools may take a twentieth of the cache."""

    def anonymous() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1e3

    allowed = cache.layout.bytes_on_disk() / 20 / 1e9
    with stream_of(cache, memory_gb=allowed) as stream:
        before = anonymous()
        peak = max(anonymous() for _ in stream) - before
        pools = stream.plan.pool_bytes / 1e6
    return {"cache": cache.layout.bytes_on_disk() / 1e6, "allowed": allowed * 1e3, "pools": pools, "peak": peak}


def steps(cache: Cache, device: str, n: int, batch: int) -> dict[str, float]:
    """Milliseconds of a training step on batches in memory and on the stream, in turns of 20 steps."""
    config = TrainConfig(
        source=SITES[0], target=SITES[1], coder=TopKConfig(latents=3072, k=16), data=DataConfig(batch_size=batch)
    )
    trainee = new_trainee(config, cache, n, cache.n_rows, torch.device(device))
    with stream_of(cache, device, pool_rows=65_536, epochs=100, batch_size=batch) as stream:
        lying = [next(stream) for _ in range(160)]  # 250 MB: more than a cache of the processor holds

        def timed(batches: Iterator[Batch]) -> float:
            began = time.perf_counter()
            for _ in range(20):
                train_step(trainee, next(batches))
            if device != "cpu":
                torch.cuda.synchronize(device)
            return (time.perf_counter() - began) / 20

        again = itertools.cycle(lying)
        timed(again)
        before, memory, disk = stream.waited_seconds, [], []
        for _ in range(n // 20):
            memory.append(timed(again))
            disk.append(timed(stream))
        waited = stream.waited_seconds - before
    return {
        "in memory, ms": 1e3 * statistics.median(memory),
        "from the stream, ms": 1e3 * statistics.median(disk),
        "stream / memory": statistics.median(b / a for a, b in zip(memory, disk, strict=True)),
        "share of time waiting": waited / (20 * sum(disk)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0, help="size of the cache that is read (default 4)")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write it: the disk that is measured")
    parser.add_argument("--device", default="cpu", help="where batches lie, and where the steps run")
    parser.add_argument("--train-rows", type=int, default=262_144, help="rows of the cache that is trained on")
    parser.add_argument("--batch", type=int, default=1024, help="rows of a training batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each random reading runs")
    parser.add_argument("--repeats", type=int, default=3, help="how often everything is read; the median counts")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each kind")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)

    folder = Path(tempfile.mkdtemp(prefix="data-path-", dir=options.folder))
    try:
        rows = max(CTX, int(options.gb * 1e9 / (2 * 2304 * 2)) // CTX * CTX)
        large, cost = make_cache(folder / "large", rows, 2304)
        shard_bytes = large.layout.bytes_on_disk() / large.layout.n_shards
        print(
            f"{rows:,} rows of 2 × 2304 bfloat16, {large.layout.bytes_on_disk() / 1e9:.1f} GB, {os.cpu_count()} cores\n"
        )
        print(f"writing one shard of {shard_bytes / 1e6:.0f} MB, ms on one thread:")
        for name, seconds in cost.items():
            print(f"  {name:42s} {1e3 * seconds:8.1f}   {shard_bytes / seconds / 1e9:6.2f} GB/s")
        found = rates(large, options.device, options.seconds, options.repeats)
        print(f"\n{'reading, MB/s':44s} {'cold':>8s} {'warm':>8s}   of the sequential rate")
        best = {heat: max(found[name][heat] for name in list(found)[:2]) for heat in ("cold", "warm")}
        for name, rate in found.items():
            share = "  ".join(f"{heat} {rate[heat] / best[heat]:.3f}" for heat in ("cold", "warm"))
            print(f"  {name:42s} {rate['cold'] / 1e6:8.1f} {rate['warm'] / 1e6:8.1f}   {share}")
        memory = memory_of_a_small_stream(large)
        print("\none epoch with little memory, MB:")
        print("  " + ", ".join(f"{name} {value:.0f}" for name, value in memory.items()))
        small, _ = make_cache(folder / "small", options.train_rows, 384)
        training = steps(small, options.device, options.steps, options.batch)
        print(f"\ntraining, d = 384, F = 3072, k = 16, batch {options.batch:,}:")
        for name, value in training.items():
            print(f"  {name:42s} {value:8.3f}")
        if options.json:
            options.json.write_text(
                json.dumps({"write_seconds": cost, "read": found, "train": training}, indent=2) + "\n"
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
