"""The massive-activation report, on rows whose outliers were put there by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec
from sparse_pipeline.shared.cache.massive import TIMES_MEDIAN, massive_activations, outliers
from sparse_pipeline.shared.cache.stats import Moments, SiteStats
from sparse_pipeline.shared.overview.describe import describe, describe_text

SITE = "layer_00.resid_post"


def test_planted_dimensions_are_found_and_no_other(tmp_path: Path) -> None:
    """Dimension 5 is large everywhere, dimension 2 at position 0 only, dimension 7 just not large enough."""
    layout = Layout(8, 16, 64, (SiteSpec(SITE, 32, "float32", layer=0, kind="resid_post"),))
    rng = np.random.default_rng(0)
    acts = rng.choice([-1.0, 1.0], (128, 32)).astype(np.float32)
    first = np.arange(128) % 16 == 0
    acts[:, 5] *= 40
    acts[first, 2] *= 500
    acts[:, 7] *= 0.99 * TIMES_MEDIAN
    ids = np.zeros((8, 16), np.int32)
    flags = np.where(np.arange(16) == 0, 1, 0) + np.zeros((8, 1), np.uint8)
    with CacheWriter.create(tmp_path / "c", layout, {}, {}) as writer:
        for shard in writer.missing_shards():
            s, r = layout.seqs_of(shard), layout.rows_of(shard)
            part = slice(s.start, s.stop)
            rows = torch.from_numpy(acts[r.start : r.stop])
            writer.write_shard(
                shard,
                tokens=ids[part],
                doc_id=ids[part],
                pos_in_doc=ids[part],
                flags=flags[part],
                acts={SITE: rows},
            )
        writer.finish()
    document = describe(tmp_path / "c")
    report = document["sites"][SITE]["massive_activations"]
    assert [(d["dimension"], d["rms"]) for d in report["dimensions_first"]] == [
        (2, pytest.approx(500)),
        (5, pytest.approx(40)),
    ]
    assert [(d["dimension"], d["times_median"]) for d in report["dimensions_rest"]] == [(5, pytest.approx(40))]
    norms = np.linalg.norm(acts.astype(np.float64), axis=1)
    assert report["norm_first"] == pytest.approx(norms[first].mean())
    assert report["norm_rest"] == pytest.approx(norms[~first].mean())
    assert report["first_over_rest"] == pytest.approx(norms[first].mean() / norms[~first].mean())
    json.dumps(document, allow_nan=False)
    assert "2 outlying dimensions at position 0: 2 (500×), 5 (40×)" in describe_text(document)


def test_nothing_to_report() -> None:
    assert outliers(Moments.zeros(4)) == []
    report = massive_activations(SiteStats.zeros(4, 8))
    assert report["norm_first"] is report["norm_rest"] is report["first_over_rest"] is None
    flat = Moments(2, np.zeros(4), np.zeros(4), 0.0, 0.0)
    assert outliers(flat) == []
