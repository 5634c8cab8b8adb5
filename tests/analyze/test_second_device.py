"""Reports of a coder on a device that is not the host's: its figures are those of the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparse_pipeline.analyze.collect import collect
from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.subject.subject import Subject
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from tests.second_device import DEVICE, second_device
from tests.synthetic import make_cache

REPORTS = ("global", "correlation", "position", "top_activations", "description_length")
SITE = "layer_01.resid_mid"


def test_reports_of_a_coder_on_a_device(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=16, ctx=8, shard_rows=64, sites={SITE: 8})
    settings = MatryoshkaConfig(latents=12, k=3, groups=(4, 8))
    coder = build_coder(settings, 8, 8, tied=True, generator=torch.Generator().manual_seed(0)).eval()
    host = Subject("planted", "run", coder, cache, SITE, SITE, Vocabulary.of(cache), tuple(cache.shards))
    config = AnalyzeConfig(out=tmp_path / "reports", compare=False, reports={n: default_report(n) for n in REPORTS})
    expected = {name: report.finalise() for name, report in collect([host], config, host.shards).reports[0].items()}
    with second_device():
        there = replace(host, device=str(DEVICE), coder=coder.to(DEVICE))
        found = {name: report.finalise() for name, report in collect([there], config, host.shards).reports[0].items()}
    assert list(found) == list(expected) == list(REPORTS)
    for name, report in found.items():
        theirs = {figure.key: figure.value for figure in expected[name].figures}
        for figure in report.figures:
            value = theirs[figure.key]
            known = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert figure.value == known, (name, figure.key)
