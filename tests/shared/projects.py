"""A finished or unfinished run, and an unfinished cache, made without a harvest or a training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from sparse_pipeline.shared.cache import CacheWriter, Layout
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import Run, create_run
from tests.synthetic import make_cache, sparse_acts, token_table

SUMMARY = {"steps": 3, "tokens": 96, "fvu": 0.25, "fvu_with_bos": 0.2, "l0": 4.0, "dead": 0, "seconds": 1.5}


def make_run(folder: Path, name: str, finished: bool = True, **summary: Any) -> Run:
    run = create_run(folder, name, {"variant": "topk", "coder": {"architecture": "topk"}}, {})
    coder = build_coder(TopKConfig(latents=8, k=2), 4, 4, tied=True)
    run.save_checkpoint(2, coder.state_dict(), {"m": torch.ones(3)}, {"step": 2})
    run.log({"step": 2, "loss": 0.5})
    if finished:
        run.finish(coder, SUMMARY | summary, {"cache": {"path": "c", "identity": "i"}})
    return run


def make_incomplete_cache(path: Path) -> None:
    cache = make_cache(path.parent / "whole")
    layout = Layout(cache.n_seq, cache.ctx, cache.layout.shard_rows, cache.layout.sites)
    table = token_table(cache.n_seq, cache.ctx)
    acts = sparse_acts(table, {site.name: site.width for site in layout.sites})
    with CacheWriter.create(path, layout, {"model": "synthetic"}, {}) as writer:
        seqs, rows = layout.seqs_of(0), layout.rows_of(0)
        writer.write_shard(
            0,
            **{name: getattr(table, name)[: seqs.stop] for name in ("tokens", "doc_id", "pos_in_doc", "flags")},
            acts={name: value[: rows.stop] for name, value in acts.items()},
        )
    shutil.rmtree(path.parent / "whole")
