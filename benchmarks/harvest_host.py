"""The host's side of a harvest without a model: rows from memory, statistics, checksum, disk.

    python -m benchmarks.harvest_host [--gb 4] [--folder /dev/shm] [--writers 8] [--json FILE]

A stand-in for the model hands out rows that lie in memory, two sites of d = 2304 in bfloat16, and the harvest's own
buffers, writers and commits take them to --folder: with the statistics that a CPU's writers sum, and with statistics
that are there already, as when a GPU sums them. In the same run the same bytes go into files of the same size with
`write`, from as many threads, and one thread each times the statistics, the checksum and the write of one shard. On
/dev/shm nothing is limited by a disk. On a shared machine the seconds of the processor mean more than those of the
clock. Everything it writes is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.data.pack import Block
from sparse_pipeline.harvest.disk import Disk
from sparse_pipeline.harvest.forward import Computed, Forward
from sparse_pipeline.harvest.job import Job
from sparse_pipeline.harvest.measure import UnitStats
from sparse_pipeline.harvest.prepare import prepare
from sparse_pipeline.harvest.stages import Stages
from sparse_pipeline.models.capture import SiteReader
from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec
from sparse_pipeline.shared.cache.files import crc32c
from sparse_pipeline.shared.cache.stats import SiteStats, site_stats
from sparse_pipeline.shared.console import Console

SITES = ("layer_08.resid_mid", "layer_08.mlp_out")
CTX = 128


class Rows:
    """Stands in for a model's reader: the same rows for every batch."""

    def __init__(self, batch_seqs: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = {site: torch.randn(batch_seqs, CTX, width, generator=generator).bfloat16() for site in SITES}

    def read(self, ids: Tensor, _mask: Any, sink: Callable[[str, Tensor], None], _positions: Any = None) -> None:
        for site, rows in self.rows.items():
            sink(site, rows[: len(ids)])


class Known(UnitStats):
    """Statistics that are there already: those of a shard, the same for every one."""

    def __init__(self, stats: dict[str, SiteStats]) -> None:
        self._known = stats

    def of(self, first_row: int) -> dict[str, SiteStats]:
        return self._known


def units(job: Job, layout: Layout) -> Iterator[tuple[list[tuple[int, slice]], Block]]:
    """Sequences of made-up tokens, a unit at a time, with the shards that they fill."""
    seqs, unit = layout.seqs_per_shard, job.unit_shards
    tokens = np.full((seqs * unit, CTX), 7, np.int32)
    flags = np.zeros((seqs * unit, CTX), np.uint8)
    flags[:, 0] = 1
    places = np.broadcast_to(np.arange(CTX, dtype=np.uint16), tokens.shape).copy()
    block = Block(tokens, np.zeros_like(tokens, np.uint32), places, flags)
    for first in range(0, layout.n_shards, unit):
        n = min(unit, layout.n_shards - first)
        yield [(first + i, slice(i * seqs, (i + 1) * seqs)) for i in range(n)], block[: n * seqs]


def host(job: Job, layout: Layout, path: Path, known: dict[str, SiteStats] | None) -> dict[str, Any]:
    """Bytes/s from memory to the last commit, bytes for each second of the processor (of all threads), and the share of
    time in which the loop waited for each stage."""
    stages = Stages()
    reader = Rows(job.batch_seqs, layout.sites[0].width)
    forward = Forward(job, cast(SiteReader, reader), stages)
    with CacheWriter.create(path, layout, {"made_by": "benchmarks.harvest_host"}, {}) as writer:
        with Console(quiet=True).progress(layout.n_rows, "rows") as progress:
            disk = Disk(job, layout, writer, progress, stages)
            with ExitStack() as taken_at_once:  # a GPU's are page-locked before the harvest's clock starts
                for _ in range(job.config.buffers):
                    for rows in taken_at_once.enter_context(disk.buffer()).values():
                        rows.zero_()
            started, used = time.perf_counter(), time.process_time()
            with disk:
                for shards, block in units(job, layout):
                    with disk.buffer() as buffer:
                        computed = forward.compute(block, buffer)
                        stats = None if known is None else Known(known)
                        disk.write(block, shards, buffer, Computed(computed.arrived, stats))
            taken, used = time.perf_counter() - started, time.process_time() - used
        assert not writer.missing_shards()
    size = layout.bytes_on_disk()
    return {"bytes_per_second": size / taken, "per_processor_second": size / used, "stages": stages.shares()}


def plain(layout: Layout, folder: Path, threads: int) -> dict[str, Any]:
    """The same activations into files of the same size, from memory, with fsync."""
    shard = torch.randn(layout.shard_rows, layout.sites[0].width).bfloat16().view(torch.uint8).numpy()

    def write(i: int) -> int:
        with (folder / f"plain-{i}.bin").open("wb", buffering=0) as file:
            written = file.write(memoryview(shard).cast("B"))
            os.fsync(file.fileno())
        return written

    started, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        written = sum(pool.map(write, range(layout.n_shards * len(SITES))))
    taken, used = time.perf_counter() - started, time.process_time() - used
    for file in folder.glob("plain-*.bin"):
        file.unlink()
    return {"bytes_per_second": written / taken, "per_processor_second": written / used}


def alone(bits: np.ndarray, flags: np.ndarray, folder: Path) -> dict[str, float]:
    """Bytes/s of processor time that one thread needs for each part of one shard of one site; best of three."""
    file = folder / "alone.bin"
    buffer = np.empty_like(bits)
    works: dict[str, Callable[[], Any]] = {
        "copy": lambda: np.copyto(buffer, bits),
        "statistics": lambda: site_stats(bits, CTX, flags),
        "checksum": lambda: crc32c(bits),
        "write": lambda: file.write_bytes(memoryview(bits).cast("B")),
    }
    found = {}
    for name, work in works.items():
        taken = []
        for _ in range(3):
            started = time.thread_time()
            work()
            taken.append(time.thread_time() - started)
        found[name] = bits.nbytes / max(min(taken), 1e-9)
    file.unlink()
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    text = folder / "text.txt"
    text.write_text("The rows of this harvest come from memory. " * 20, encoding="utf-8")
    base = HarvestConfig(
        dataset=str(text), ctx=CTX, device="cpu", tokens=CTX, writers=options.writers, buffers=options.buffers
    )
    job = prepare(replace(base, batch_tokens=options.batch_tokens, shard_rows=options.shard_rows))
    shard_rows = job.seqs_per_shard * CTX
    shards = max(1, round(options.gb * 1e9 / (shard_rows * options.width * 2 * len(SITES))))
    specs = tuple(SiteSpec(site, options.width, module_path="-", layer=8, kind=site.split(".")[1]) for site in SITES)
    layout = Layout(shards * job.seqs_per_shard, CTX, shard_rows, specs)
    flags = np.zeros((job.seqs_per_shard, CTX), np.uint8)
    flags[:, 0] = 1
    rows = Rows(job.batch_seqs, options.width).rows
    repeats = max(1, job.seqs_per_shard // job.batch_seqs)
    bits = {
        site: x[: job.seqs_per_shard].repeat(repeats, 1, 1).view(torch.uint16).numpy().reshape(-1, options.width)
        for site, x in rows.items()
    }
    known = {site: site_stats(values, CTX, flags.reshape(-1)) for site, values in bits.items()}
    found: dict[str, Any] = {
        "bytes": layout.bytes_on_disk(),
        "writers": options.writers,
        "cpus": len(os.sched_getaffinity(0)),
        "alone": alone(bits[SITES[0]], flags.reshape(-1), folder),
        "plain write": plain(layout, folder, options.writers),
    }
    for name, stats in (("statistics by the writers", None), ("statistics known", known)):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            found[name] = host(job, layout, Path(scratch) / "cache", stats)
    found["plain write, again"] = plain(layout, folder, options.writers)
    return found


def text_of(found: dict[str, Any]) -> str:
    lines = [
        f"{found['bytes'] / 1e9:.2f} GB, {found['writers']} writers, {found['cpus']} processors; one thread alone, GB "
        "per second of processor time: "
        + ", ".join(f"{name} {rate / 1e9:.2f}" for name, rate in found["alone"].items()),
        "",
        "| | GB/s | GB per second of the processor | the loop waited for |",
        "|---|---|---|---|",
    ]
    for name, value in found.items():
        if isinstance(value, dict) and "bytes_per_second" in value:
            shares = ", ".join(f"{stage} {share:.0%}" for stage, share in value.get("stages", {}).items())
            rates = (value[key] / 1e9 for key in ("bytes_per_second", "per_processor_second"))
            lines.append(f"| {name} | {' | '.join(f'{rate:.2f}' for rate in rates)} | {shares} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--shard-rows", type=int, default=0)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--buffers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        found = measure(options, Path(scratch))
    print(text_of(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
