"""Runs that were trained before their cache grew: resumed and analysed on what was there when they began."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from shared.cache import CacheWriter, open_cache
from shared.split import split_rows
from tests.synthetic import make_cache, sparse_acts, token_table
from tests.train.conftest import SOURCE, TARGET
from train.config import TrainConfig
from train.loop import plan
from train.loop import train as train_runs

TABLE = token_table(230, 16)
ACTS = sparse_acts(TABLE, {SOURCE: 32, TARGET: 32, "layer_02.mlp_out": 8})
MAY_GROW = ("n_seq", "sites")


def grow(path: Path) -> None:
    """From 150 sequences to 230 and by a site; 150 ends within a shard of 16."""
    with mock.patch("os.fsync"):
        layout = make_cache(path.with_name("other"), 230, 16, acts=ACTS, table=TABLE).layout
        config = open_cache(path).config | {"n_seq": 230, "sites": list(ACTS)}
        with CacheWriter.create(path, layout, config, {}, may_grow=MAY_GROW) as writer:
            for shard in writer.missing_shards():
                start = shard * 16 if shard < 10 else shard * 16 - 10  # ten places of shard 9 stay empty
                cut = slice(start, start + writer.parts.sequences(shard))
                arrays = (getattr(TABLE, name)[cut] for name in ("tokens", "doc_id", "pos_in_doc", "flags"))
                writer.write_shard(
                    shard, *arrays, {name: x[cut.start * 16 : cut.stop * 16] for name, x in ACTS.items()}
                )
            writer.finish()


def test_a_run_goes_on_with_the_cache_that_it_began_with(tmp_path: Path, config: Callable[..., TrainConfig]) -> None:
    few = {name: ACTS[name][: 150 * 16] for name in (SOURCE, TARGET)}
    made = config(cache=make_cache(tmp_path / "c", 150, 16, acts=few, table=token_table(150, 16)).path)
    before, first = plan([made]).groups[0], open_cache(tmp_path / "c")
    train_runs([made])
    final = made.path / "final" / "coder.safetensors"
    weights = final.read_bytes()
    shutil.rmtree(made.path / "final")
    shutil.rmtree(sorted((made.path / "checkpoints").iterdir())[-1])
    grow(tmp_path / "c")
    assert open_cache(tmp_path / "c").n_seq == 240
    group = plan([made]).groups[0]
    assert group.cache.identity == first.identity
    assert group.stream == before.stream
    assert (split_rows(group.cache, 0.1).heldout == split_rows(first, 0.1).heldout).all()
    train_runs([made], resume=True)
    assert final.read_bytes() == weights
    fresh = plan([dataclasses.replace(made, name="fresh")]).groups[0]
    assert fresh.cache.n_seq == 240
    assert fresh.stream.train_rows > before.stream.train_rows
    assert [len(one.configs) for one in plan([made, dataclasses.replace(made, name="fresh")]).groups] == [1, 1]


def test_analysis_reads_the_cache_as_the_run_saw_it(tmp_path: Path, config: Callable[..., TrainConfig]) -> None:
    from analyze.config import AnalyzeConfig
    from analyze.run import analyze

    few = {name: ACTS[name][: 150 * 16] for name in (SOURCE, TARGET)}
    made = config(cache=make_cache(tmp_path / "c", 150, 16, acts=few, table=token_table(150, 16)).path)
    train_runs([made])
    settings = AnalyzeConfig(out=tmp_path / "reports", name="a", device="cpu")
    before = analyze([made.path], settings)
    grow(tmp_path / "c")
    after = analyze([made.path], dataclasses.replace(settings, name="b"))
    assert after.rows == before.rows == 150 * 16
    assert after.runs == before.runs
