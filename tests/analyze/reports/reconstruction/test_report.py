"""The reconstruction report against dense float64 arithmetic: nested prefixes, L0, dead latents, merging."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.analyze.reports.reconstruction.config import ReconstructionConfig
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from tests.analyze.hierarchy import Hierarchy, hierarchy
from tests.analyze.labelled_cache import CTX, SITE, labelled_cache, report

GROUPS = (8, 24, 32)


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return hierarchy(n=1800, seed=3)


@pytest.fixture(scope="module")
def cache(tree: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return labelled_cache(tree, tmp_path_factory.mktemp("planted") / "cache")


@pytest.fixture(scope="module")
def coder(tree: Hierarchy) -> Coder:
    width = tree.x.shape[1]
    config = MatryoshkaConfig(latents=sum(GROUPS), k=6, groups=GROUPS)
    return build_coder(config, width, width, tied=True, generator=torch.Generator().manual_seed(0)).eval()


def test_each_prefix_reconstructs_alone(cache: Cache, coder: Coder) -> None:
    x = cache.rows(SITE, np.arange(cache.n_rows)).float()
    with torch.no_grad():
        z, w_dec, b_dec = coder.encode(x).dense().double(), coder.w_dec.double(), coder.b_dec.double()
    rest = torch.arange(len(x)) % CTX != 0
    y = x.double()[rest]
    variance = (y - torch.from_numpy(cache.stats(SITE).rest.mean)).square().sum()
    result = report("global", ReconstructionConfig(), cache, coder)
    (groups,) = result.tables
    for row, prefix in zip(groups.rows, np.cumsum(GROUPS), strict=True):
        y_hat = z[rest, :prefix] @ w_dec[:prefix] + b_dec
        assert row[-1] == pytest.approx(float((y - y_hat).square().sum() / variance), rel=1e-5)
    assert result.figure("fvu").value == groups.rows[-1][-1]
    assert result.figure("l0").value == pytest.approx(float((z[rest] > 0).sum(1).double().mean()))
    assert result.figure("l0").with_bos == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert result.figure("dead").value == int(((z[rest] > 0).sum(0) == 0).sum())
    assert [column.key for column in result.columns] == ["group", "cosine", "norm", "alignment"]
    assert np.bincount(np.asarray(result.columns[0].values)).tolist() == [0, *GROUPS]


def test_merging_is_as_good_as_one_pass(cache: Cache, coder: Coder) -> None:
    whole, merged = (report("global", ReconstructionConfig(), cache, coder, halves) for halves in (False, True))
    assert whole.data["l0_distribution"].tolist() == merged.data["l0_distribution"].tolist()
    for figure in whole.figures:
        again = merged.figure(figure.key)
        assert again.value == pytest.approx(figure.value, rel=1e-12)
        assert again.with_bos == (None if figure.with_bos is None else pytest.approx(figure.with_bos, rel=1e-12))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        ReconstructionConfig(dense_above=0.0)
