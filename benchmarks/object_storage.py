"""A cache in object storage against the same cache on the local disk: written by two writers, then trained from.

    AWS_ENDPOINT_URL=http://127.0.0.1:5000 … python -m benchmarks.object_storage --address s3://bucket/bench [--mb 256]

Writes a cache of one site of random bits (d = 1024, bfloat16) by two processes, each with half of the shards, into a
folder and to ``--address``, which must not exist. Then it reads all rows once, and trains a small TopK autoencoder in
windows of an eighth of the cache: from the folder; from the bucket with no copy on this machine (cold); and again,
with all copies here (warm). The coders must be equal, bit for bit. A first training, which compiles, is not counted.
Everything written locally is removed; the objects stay. ``memory://…`` measures without a server, with the writers one
after the other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec, open_cache
from sparse_pipeline.shared.cache.writer import Share
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.objects.room import FOLDER
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.loop import train

SITE, CTX, WRITERS = "layer_08.resid_mid", 64, 2


def write(path: str, rank: int, rows: int, width: int, shard_rows: int, mirror: str) -> float:
    """One writer's share of the cache; whoever is last finishes it. Seconds."""
    os.environ[FOLDER] = mirror
    torch.set_num_threads(1)
    layout = Layout(rows // CTX, CTX, shard_rows, (SiteSpec(SITE, width, module_path="-", layer=8, kind="resid_mid"),))
    pool = torch.randn(shard_rows, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    config = {"made_by": "benchmarks.object_storage", "rows": rows, "width": width}
    began = time.perf_counter()
    with CacheWriter.create(path, layout, config, {}, Share(rank, WRITERS)) as writer:
        for shard in writer.missing_shards():
            seqs = layout.seqs_of(shard)
            flags = np.zeros((len(seqs), CTX), np.uint8)
            flags[:, 0] = 1
            writer.write_shard(
                shard,
                tokens=np.random.default_rng(shard).integers(0, 1000, (len(seqs), CTX), dtype=np.int32),
                doc_id=np.repeat(np.arange(seqs.start, seqs.stop)[:, None] // 4, CTX, 1),
                pos_in_doc=np.zeros((len(seqs), CTX), np.uint16),
                flags=flags,
                acts={SITE: pool[: len(seqs) * CTX].roll(shard, 0)},
            )
        if not writer.ranks_left():
            writer.finish()
    return time.perf_counter() - began


def written(path: str, sizes: tuple[int, int, int], mirrors: list[str], apart: bool) -> float:
    """Seconds of the slower writer, without the start of its process."""
    if not apart:
        return sum(write(path, rank, *sizes, mirror) for rank, mirror in enumerate(mirrors))
    with ProcessPoolExecutor(WRITERS, multiprocessing.get_context("spawn")) as pool:
        return max(pool.map(write, [path] * WRITERS, range(WRITERS), *([size] * WRITERS for size in sizes), mirrors))


def read(cache: str) -> float:
    """Seconds of one pass over all rows, opening included."""
    began = time.perf_counter()
    opened = open_cache(cache)
    for shard in opened.shards:
        opened.chunk(SITE, shard).view(torch.int16).sum()
    return time.perf_counter() - began


def trained(cache: str, name: str, folder: Path, batch: int) -> tuple[float, bytes]:
    """Seconds of one epoch, opening included, and the coder."""
    opened = open_cache(cache)
    windows = DataConfig(batch_size=batch, epochs=1, resident=False, pool_rows=opened.n_rows // 8)
    config = TrainConfig(
        cache=Path(cache),
        source=SITE,
        target=None,
        runs=folder,
        name=name,
        coder=TopKConfig(latents=64, k=4),
        data=windows,
        min_steps=1,
        device="cpu",
    )
    began = time.perf_counter()
    train([config])
    return time.perf_counter() - began, (config.path / "final" / "coder.safetensors").read_bytes()


def measure(address: str, folder: Path, sizes: tuple[int, int, int], batch: int) -> dict[str, Any]:
    """Seconds and rates of everything."""
    apart, local = not address.startswith("memory:"), str(folder / "local")
    machines = [str(folder / f"machine{n}") for n in range(WRITERS)]
    seconds = {
        "written to the disk": written(local, sizes, machines, apart),
        "written to the bucket": written(address, sizes, machines, apart),
    }
    where = {"the disk": local, "the bucket, cold": address, "the bucket, warm": address}
    os.environ[FOLDER] = str(folder / "reader")
    for name, cache in where.items():
        seconds[f"read from {name}"] = read(cache)
    os.environ[FOLDER] = str(folder / "trainer")
    coders = [trained(local, "first", folder / "runs", batch)[1]]
    for name, cache in where.items():
        seconds[f"trained from {name}"], coder = trained(
            cache, name.replace(", ", "-").replace(" ", "-"), folder, batch
        )
        coders.append(coder)
    if len(set(coders)) != 1:
        raise SystemExit("the coders differ")
    n_bytes = open_cache(local).layout.bytes_on_disk()
    return {"bytes": n_bytes, "seconds": seconds, "rates": {name: n_bytes / value for name, value in seconds.items()}}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--mb", type=float, default=256)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--shard-rows", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = int(options.mb * 1e6 / (2 * options.width)) // CTX * CTX
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        sizes = (rows, options.width, options.shard_rows)
        found = measure(options.address, Path(scratch).absolute(), sizes, options.batch)
    for name, value in found["seconds"].items():
        print(f"{name:<30} {value:8.2f} s  {found['rates'][name] / 1e6:8.1f} MB/s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
