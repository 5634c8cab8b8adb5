"""The harvest of a model of Gemma-2-2B's shape: compiled against eager, bare forward passes, and end to end."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harvest import corpus_file, disk_rate, gemma_2_2b, matmul_rate
from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.job import Job
from sparse_pipeline.harvest.prepare import cost, prepare
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.models.capture import CompiledReader, SiteReader
from sparse_pipeline.models.loading import load_cut
from sparse_pipeline.models.site_names import Site
from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec, open_cache
from sparse_pipeline.shared.cache.files import crc32c
from sparse_pipeline.shared.cache.stats import site_stats
from sparse_pipeline.shared.console import Console

from .record import Record
from .setting import FULL_WIDTH, SITES, Setting, free_device, relative_error, steady, synchronise

CTX = 128
NAME = "device-check"
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 8192,
}


def config_of(setting: Setting, **settings: Any) -> HarvestConfig:
    """Settings of a harvest of both sites; writes the model and the text the first time."""
    folder = setting.memory / "inputs"
    model, text = folder / "gemma-2-2b-shape", folder / "corpus.jsonl"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        gemma_2_2b(folder, layers=9, device=setting.device.type, **setting.of(TINY, {}))
        free_device(setting)
        corpus_file(folder, setting.of(0, 14_000_000))
        (folder / "complete").touch()
    batch = setting.of(1024, 65_536)
    base = HarvestConfig(model=str(model), dataset=str(text), sites=SITES, ctx=CTX, batch_tokens=batch, name=NAME)
    return replace(base, **settings)


def harvested(setting: Setting) -> Path:
    """The cache in memory that `harvests` writes; made here if that has not run."""
    path = setting.memory / NAME
    if not (path / "manifest.json").is_file() or not open_cache(path, allow_incomplete=True).complete:
        config = config_of(setting, cache_dir=setting.memory, tokens=_tokens(setting), compile="off")
        harvest(config, Console(quiet=True))
    return path


def _tokens(setting: Setting) -> int:
    free = shutil.disk_usage(setting.memory).free
    return int(setting.of(16_384, min(1_048_576, int(free * 0.6) // 9216 // 65_536 * 65_536)))


def _reader_parts(config: HarvestConfig) -> tuple[Job, nn.Module, nn.Module, list[Site], Tensor]:
    """(job, the cut model, its body, the sites, one batch of random ids), as `harvest` makes them."""
    job = prepare(config)
    cut = load_cut(job.checkpoint, config.model, config.sites)
    vocabulary = job.checkpoint.config.get_text_config().vocab_size
    ids = torch.randint(3, vocabulary, (job.batch_seqs, CTX), device=job.checkpoint.device)
    ids[:, 0] = job.specials.bos
    return job, cut.model, cut.body.to(job.checkpoint.device), cut.sites, ids


def compiled(record: Record, setting: Setting) -> None:
    """The compiled model gives what the eager one gives, and compiles once. Fills Inductor's cache for `harvests`."""
    job, model, body, sites, ids = _reader_parts(config_of(setting, compile="on"))
    record.put("attention", job.checkpoint.attention)
    record.put("dtype", str(job.checkpoint.dtype))
    found: dict[str, dict[str, Tensor]] = {"eager": {}, "compiled": {}}

    def keep(kind: str) -> Any:
        return lambda name, value: found[kind].__setitem__(name, value.float().cpu())

    with SiteReader(model, body, sites) as reader:
        reader.read(ids, None, keep("eager"))
    with CompiledReader(model, body, sites) as reader:
        began = time.perf_counter()
        reader.read(ids, None, keep("compiled"))
        synchronise(setting)
        record.put("compiling, s", round(time.perf_counter() - began, 1))
        torch._dynamo.utils.counters.clear()
        reader.read(ids.flip(0), None, lambda *_: None)
        again = int(torch._dynamo.utils.counters["stats"].get("unique_graphs", 0))
        record.check("compiled once", again == 0, f"{again} more graphs")
    for name, value in found["eager"].items():
        error = relative_error(found["compiled"][name], value)
        fine = error < 3e-2 and bool(value.isfinite().all())
        record.check(f"compiled {name}", fine, f"{error:.2e} from eager")


def harvests(record: Record, setting: Setting) -> None:
    """Bare forward passes, whole harvests to memory and to the disk, and the host's part alone."""
    config = config_of(setting, compile=setting.of("off", "on"))
    ceiling = matmul_rate(setting.device)
    record.put("matrix product, TFLOP/s", round(ceiling / 1e12, 2))
    flops = _forward(record, setting, config, ceiling)
    tokens = _tokens(setting)
    places = {
        "to memory": (setting.memory, {}, tokens),
        "to disk, 6 writers, 6 buffers": (setting.out, {"writers": 6, "buffers": 6}, tokens * 7 // 8),
    }
    for name, (folder, settings, n) in places.items():
        with record.part(f"harvest {name}"):
            _whole(record, name, replace(config, tokens=n, cache_dir=folder, **settings), flops, ceiling)
    with record.part("disk"):
        rate = disk_rate(setting.out, setting.of(1 << 22, 3 << 30))
        record.put("disk with fsync, GB/s", round(rate / 1e9, 2))
    with record.part("writing"):
        _writing(record, setting)


def _forward(record: Record, setting: Setting, config: HarvestConfig, ceiling: float) -> float:
    """Rates of the bare cut forward pass; returns FLOP a token."""
    job, model, body, sites, ids = _reader_parts(config)
    flops = cost(job)[2].flops_per_token
    record.put("GFLOP a token", round(flops / 1e9, 3))
    kinds: dict[str, type[SiteReader]] = {"eager": SiteReader} | setting.of({}, {"compiled": CompiledReader})
    for name, kind in kinds.items():
        with record.part(f"forward, {name}"), kind(model, body, sites) as reader:
            found = steady(setting, lambda _, r=reader: r.read(ids, None, lambda *_: None), setting.of(2, 6), 2)  # type: ignore[misc]
            rate = ids.numel() / found["ms"]
            share = round(rate * 1e3 * flops / ceiling, 3)
            record.put(f"forward, {name}", found | {"ktok/s": round(rate, 1), "of the matrix product": share})
    free_device(setting)
    return flops


def _whole(record: Record, name: str, config: HarvestConfig, flops: float, ceiling: float) -> None:
    began = time.perf_counter()
    result = harvest(config, Console(quiet=True))
    rate = result.tokens_per_second
    bytes_per_token = result.bytes / (result.n_sequences * result.ctx)
    found = {
        "ktok/s": round(rate / 1e3, 1),
        "GB/s": round(rate * bytes_per_token / 1e9, 2),
        "of the matrix product": round(rate * flops / ceiling, 3),
        "waited for": {stage: round(share, 3) for stage, share in result.stages.items()},
        "tokens": result.tokens_run,
        "seconds with loading": round(time.perf_counter() - began, 1),
    }
    record.put(f"harvest {name}", found)
    stats = open_cache(result.path).stats(SITES[0])
    fine = stats.nonfinite == 0 and bool(np.isfinite(stats.rest.var).all())
    record.check(f"harvest {name}: finite", fine, f"{stats.nonfinite} rows are not")


def _writing(record: Record, setting: Setting) -> None:
    """What the host does with a shard: statistics, checksum, file; by the number of threads that write."""
    width, rows = setting.of((64, 1024), (FULL_WIDTH, 8192))
    values = torch.randn(rows, width).bfloat16()
    bits, flags = values.view(torch.uint16).numpy(), np.zeros(rows, np.uint8)
    flags[::CTX] = 1
    began = time.perf_counter()
    site_stats(bits, CTX, flags)
    middle = time.perf_counter()
    crc32c(bits.view(np.uint8).reshape(-1))
    alone = {"statistics": 1e3 * (middle - began), "checksum": 1e3 * (time.perf_counter() - middle)}
    record.put("one site of a shard, ms", {name: round(ms, 2) for name, ms in alone.items()})
    for place, folder in (("memory", setting.memory), ("disk", setting.out)):
        for threads in setting.of((1, 2), (1, 2, 4, 8)):
            seconds = _write_shards(folder / "writing", values, flags, threads)
            rate = {"ms a shard": round(1e3 * seconds, 1), "ktok/s": round(rows / seconds / 1e3, 1)}
            record.put(f"writing to {place}, threads: {threads}", rate)


def _write_shards(path: Path, values: Tensor, flags: np.ndarray[Any, Any], threads: int) -> float:
    """Seconds a shard of both sites, with so many threads that write at once."""
    rows, width = values.shape
    specs = tuple(SiteSpec(site, width, module_path="-", layer=8, kind=site.split(".")[1]) for site in SITES)
    n_shards = 2 * threads
    shape = (rows // CTX, CTX)
    zeros = np.zeros(shape, np.int32)

    def write(first: int) -> None:
        for shard in range(first, n_shards, threads):
            writer.write_shard(
                shard,
                tokens=zeros,
                doc_id=zeros.astype(np.uint32),
                pos_in_doc=zeros.astype(np.uint16),
                flags=flags.reshape(shape),
                acts=dict.fromkeys(SITES, values),
            )

    shutil.rmtree(path, ignore_errors=True)
    layout = Layout(n_shards * shape[0], CTX, rows, specs)
    with CacheWriter.create(path, layout, {"made_by": "benchmarks.device"}, {}) as writer:
        workers = [threading.Thread(target=write, args=(first,)) for first in range(threads)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = (time.perf_counter() - began) / n_shards
    shutil.rmtree(path)
    return seconds
