"""Runs that were trained before their cache grew: resumed and analysed on what was there when they began."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.cache import CacheWriter, open_cache
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import create_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import plan
from sparse_pipeline.train.loop import train as train_runs
from sparse_pipeline.train.normalisation import moments_of
from tests.synthetic import TokenTable, make_cache, sparse_acts, token_table
from tests.train.conftest import SOURCE, TARGET

TABLE = token_table(230, 16)
ACTS = sparse_acts(TABLE, {SOURCE: 32, TARGET: 32, "layer_02.mlp_out": 8})
MAY_GROW = ("n_seq", "sites")


def grow(path: Path, n_seq: int = 230) -> None:
    """From 150 sequences to n_seq and by a site; 150 ends within a shard of 16."""
    with mock.patch("os.fsync"):
        acts = {name: x[: n_seq * 16] for name, x in ACTS.items()}
        table = TokenTable(*(getattr(TABLE, name)[:n_seq] for name in ("tokens", "doc_id", "pos_in_doc", "flags")))
        layout = make_cache(path.with_name("other"), n_seq, 16, acts=acts, table=table).layout
        config = open_cache(path).config | {"n_seq": n_seq, "sites": list(ACTS)}
        with CacheWriter.create(path, layout, config, {}, may_grow=MAY_GROW) as writer:
            for shard in writer.missing_shards():
                start = shard * 16 if shard < 10 else shard * 16 - 10  # ten places of shard 9 stay empty
                cut = slice(start, start + writer.parts.sequences(shard))
                arrays = {name: getattr(TABLE, name)[cut] for name in ("tokens", "doc_id", "pos_in_doc", "flags")}
                writer.write_shard(
                    shard, **arrays, acts={name: x[cut.start * 16 : cut.stop * 16] for name, x in ACTS.items()}
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
    few = {name: ACTS[name][: 150 * 16] for name in (SOURCE, TARGET)}
    made = config(cache=make_cache(tmp_path / "c", 150, 16, acts=few, table=token_table(150, 16)).path)
    train_runs([made])
    settings = AnalyzeConfig(out=tmp_path / "reports", name="a", device="cpu")
    before = analyze([made.path], settings)
    grow(tmp_path / "c")
    after = analyze([made.path], dataclasses.replace(settings, name="b"))
    assert after.rows == before.rows == 150 * 16
    assert after.runs == before.runs


def at_its_start(cache: Path, name: str) -> Path:
    """A run that never made a step, on the cache as it is now."""
    opened = open_cache(cache)
    coder = build_coder(TopKConfig(latents=64, k=8), 32, 32, tied=True, generator=torch.Generator().manual_seed(0))
    moments = moments_of(opened, SOURCE, coder.config.normalise)
    coder.set_normalisation(moments, moments)
    run = create_run(cache.parent / "runs", name, {}, {})
    where = {"path": str(cache), "identity": opened.identity}
    run.finish(coder, {}, {"source": SOURCE, "target": SOURCE, "cache": where, "training": {"seed": 0}})
    return run.path


@pytest.mark.parametrize("n_seq", [150, 230])
def test_runs_before_and_after_a_growth_are_compared_where_they_saw_the_same_rows(tmp_path: Path, n_seq: int) -> None:
    """Coders with the same weights are the same on the same rows: CKA is 1. On other rows it would be anything."""
    few = {name: ACTS[name][: 150 * 16] for name in (SOURCE, TARGET)}
    path = make_cache(tmp_path / "c", 150, 16, acts=few, table=token_table(150, 16)).path
    runs = [at_its_start(path, "old")]
    grow(path, n_seq)
    runs += [at_its_start(path, "new-0"), at_its_start(path, "new-1")]
    config = AnalyzeConfig(out=tmp_path / "reports", device="cpu", reports={"global": ReconstructionConfig()})
    result = analyze(runs, config)
    found = result.comparison
    assert found is not None
    grew = n_seq > 150
    groups = [["old"], ["new-0", "new-1"]] if grew else [["old", "new-0", "new-1"]]
    assert list(found["groups"].values()) == groups
    likeness = {(pair["a"], pair["b"]): pair["cka"] for pair in found["pairs"]}
    assert len(likeness) == 3 + 3 * len(result.controls)
    for (a, b), cka in likeness.items():
        same = not grew or ("old" in a) == ("old" in b)
        assert cka == (pytest.approx(1, abs=1e-6) if same else None), (a, b)
    caches = json.loads((result.report.parent / "report.json").read_text())["caches"]
    assert sorted(cache["rows"] for cache in caches) == [150 * 16, 240 * 16 if grew else 150 * 16]
    assert {cache["identity"] for cache in caches} == set(open_cache(path).identities)
