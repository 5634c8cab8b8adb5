"""Long work: memory and open files stay where they are, however many steps are trained and shards written and read."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec, open_cache
from sparse_pipeline.shared.cache.verify import verify_cache
from sparse_pipeline.shared.runs.folder import Run, open_run
from sparse_pipeline.train.loop import train
from tests.faults.subjects import SITE, settings
from tests.synthetic import sparse_acts, token_table

LONG = os.environ.get("PIPELINE_FAULTS") == "long"
STEPS, SHARDS = (100_000, 5_000) if LONG else (400, 40)


@pytest.fixture(autouse=True)
def _only_what_is_new() -> Iterator[None]:
    """Collections look at new objects only: the hundreds of thousands of a whole suite take half a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Gauge:
    """Resident memory in MiB and open descriptors, over time."""

    def __init__(self) -> None:
        self.process, self.seen = psutil.Process(), list[tuple[float, int]]()

    def read(self) -> None:
        gc.collect()
        self.seen.append((self.process.memory_info().rss / 2**20, self.process.num_fds()))

    def grown(self) -> tuple[float, int]:
        """Growth of both from a quarter of the way to the end."""
        (memory, files), (last, files_last) = self.seen[len(self.seen) // 4], self.seen[-1]
        return last - memory, files_last - files


def test_training_takes_no_more_memory_after_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge, log = Gauge(), Run.log

    def logged(run: Run, metrics: Any) -> None:
        gauge.read()
        log(run, metrics)

    config = settings(tmp_path, samples=None, log_every=STEPS // 40, checkpoint_every=STEPS // 20)
    data = replace(config.data, batch_size=16, epochs=STEPS // 80)  # an epoch has about 88 batches
    monkeypatch.setattr(Run, "log", logged)
    train([replace(config, data=data, keep_checkpoints=2)])
    memory, files = gauge.grown()
    steps = open_run(config.path).summary["steps"]
    print(f"training: {steps:,} steps, {len(gauge.seen)} readings, {memory:+.1f} MiB, {files:+d} files")
    assert steps >= STEPS
    assert len(gauge.seen) >= 20
    assert memory < 32
    assert files <= 2


def test_a_cache_takes_no_more_memory_after_many_shards(tmp_path: Path) -> None:
    layout = Layout(SHARDS, 16, 16, (SiteSpec(SITE, 8, layer=1, kind="resid_mid"),))
    table = token_table(SHARDS, 16, packing="document")
    acts = sparse_acts(table, {SITE: 8})[SITE]
    gauge = Gauge()
    with CacheWriter.create(tmp_path / "c", layout, {"harvest": {"model": "m"}}, {"made_by": "tests"}) as writer:
        for shard in range(SHARDS):
            seqs, rows = layout.seqs_of(shard), layout.rows_of(shard)
            tokens = {name: values[seqs.start : seqs.stop] for name, values in vars(table).items()}
            writer.write_shard(shard, **tokens, acts={SITE: acts[rows.start : rows.stop]})
            if shard % (SHARDS // 20) == 0:
                gauge.read()
        writer.finish()
    written = gauge.grown()
    gauge, cache = Gauge(), open_cache(tmp_path / "c")
    for shard in cache.shards:
        assert torch.equal(cache.chunk(SITE, shard), acts[shard * 16 : shard * 16 + 16])
        if shard % (SHARDS // 20) == 0:
            gauge.read()
    read = gauge.grown()
    print(f"shards: {SHARDS:,} written {written[0]:+.1f} MiB, {written[1]:+d} files; read {read[0]:+.1f}, {read[1]:+d}")
    assert verify_cache(tmp_path / "c").ok
    for memory, files in (written, read):
        assert memory < 32
        assert files <= 2
    assert np.isfinite(gauge.seen).all()
