"""Training from the harvested cache: rows resident on the device, and streamed; the share of time spent waiting."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path

from sparse_pipeline.shared.cache import Cache, open_cache
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.samplers.uniform import Uniform, UniformConfig

from .harvests import harvested
from .record import Record
from .setting import FULL_K, FULL_LATENTS, SITES, Setting, synchronise


def trainings(record: Record, setting: Setting) -> None:
    """Draining the data path, then whole runs."""
    path = harvested(setting)
    cache = open_cache(path)
    for name, resident in (("streamed", False), ("resident", True)):
        with record.part(f"rows alone, {name}"):
            record.put(f"rows alone, {name}, GB/s by epoch", _drain(setting, cache, resident))
    shutil.rmtree(setting.memory / "runs", ignore_errors=True)
    for name, config in _runs(setting, cache).items():
        with record.part(name):
            _run(record, name, config)


def trained(setting: Setting) -> Path:
    """The finished run that `trainings` leaves; trained here if that has not run."""
    path = setting.memory / "runs" / "resident"
    if not (path / "final" / "config.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
        config = _runs(setting, open_cache(harvested(setting)))["resident"]
        train([replace(config, name="resident")], Console(quiet=True))
    return path


def _drain(setting: Setting, cache: Cache, resident: bool) -> list[float]:
    """Reading two epochs of batches without training on them."""
    batch = setting.of(64, 4096)
    pool = max(128, cache.n_rows // 8)
    data = DataConfig(batch_size=batch, epochs=2, heldout=0.0, pool_rows=pool, resident=resident)
    row_bytes = sum(spec.row_bytes for spec in cache.sites.values())
    rates: list[float] = []
    with open_stream(cache, SITES, data, Uniform(UniformConfig()), device=setting.device) as stream:
        began, rows = time.perf_counter(), 0
        for rows_of_batch in stream:
            rows += len(rows_of_batch)
            if rows >= cache.n_rows * (1 + len(rates)) - batch:
                synchronise(setting)
                rates.append(round(cache.n_rows * row_bytes / (time.perf_counter() - began) / 1e9, 2))
                began = time.perf_counter()
    return rates


def _runs(setting: Setting, cache: Cache) -> dict[str, TrainConfig]:
    batch, steps = setting.of((64, 120), (4096, 240))
    steps = min(steps, 4 * int(cache.n_rows * 0.94) // batch)
    coder = MatryoshkaConfig(**setting.of({"latents": 64, "k": 4}, {"latents": FULL_LATENTS, "k": FULL_K}))
    base = TrainConfig(
        cache=cache.path,
        source=SITES[0],
        target=SITES[1],
        runs=setting.memory / "runs",
        coder=coder,
        data=DataConfig(batch_size=batch, tokens=batch * steps, pool_rows=max(128, cache.n_rows // 8), resident=True),
        optimizer=OptimizerConfig(lr=3e-4),
        min_steps=1,
        log_every=20,
        checkpoint_every=10**6,
        eval_rows=4096,
        dead_after=10**9,
        device=setting.device.type,
    )
    return {
        "resident": base,
        "streamed": replace(base, data=replace(base.data, resident=False)),
        "resident, dead latents by default": replace(base, dead_after=None),
    }


def _run(record: Record, name: str, config: TrainConfig) -> None:
    folder = name.replace(", ", "-").replace(" ", "-")
    began = time.perf_counter()
    (summary,) = train([replace(config, name=folder)], Console(quiet=True))
    wall = time.perf_counter() - began
    lines = open_run(Path(summary.path)).metrics()
    steady = lines[2:] or lines
    rates = [line["tokens_per_second"] for line in steady if line.get("tokens_per_second")]
    waits = [line["wait_share"] for line in steady if line.get("wait_share") is not None]
    first, last = lines[0]["reconstruction"], lines[-1]["reconstruction"]
    found = {
        "ms a step": round(1e3 * config.data.batch_size / statistics.median(rates), 3) if rates else None,
        "share of time waiting": round(statistics.median(waits), 3) if waits else None,
        "seconds in steps": round(summary.seconds, 2),
        "seconds in all": round(wall, 1),
        "loss": [round(first, 4), round(last, 4)],
        "dead": lines[-1]["dead"],
        "FVU": summary.fvu,
    }
    record.put(f"training, {name}", found)
    record.check(f"training, {name}: finite, and learns", math.isfinite(last) and last <= first, found["loss"])
