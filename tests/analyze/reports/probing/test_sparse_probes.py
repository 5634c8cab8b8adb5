"""Sparse probes of planted latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from sparse_pipeline.analyze.probes.dense import train_probes
from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.splits import split_groups
from sparse_pipeline.analyze.reports.probing.sparse_probes import family_means, mean_differences, sparse_probes
from tests.analyze.hierarchy import absorbing_coder, hierarchy


def test_sparse_probing_of_planted_latents() -> None:
    tree = hierarchy(n=4000)
    coder = absorbing_coder(tree, 0.0)
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    labels = Labels(tuple(f"parent:{i}" for i in range(3)), tree.labels())
    split = split_groups(np.arange(len(tree.x)), 0)
    probes = train_probes(tree.x, labels, split)
    results = sparse_probes(codes, labels, split, probes)
    for p, result in enumerate(results):
        assert result.latents[0] == p
        assert result.scores[1].f1 > 0.99  # the parent's latent says it all
        assert result.dense == probes.scores[p]
    means = family_means(results, "f1")
    assert means["parent"]["1"] == pytest.approx(np.mean([r.scores[1].f1 for r in results]))
    # The control: shuffled codes know nothing
    shuffled = codes[np.random.default_rng(0).permutation(codes.shape[0])]
    assert family_means(sparse_probes(shuffled, labels, split, probes), "auc")["parent"]["5"] == pytest.approx(
        0.5, abs=0.1
    )


def test_mean_differences_are_differences_of_means() -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((200, 6)) < 0.3, rng.random((200, 6)), 0)
    values = rng.integers(-1, 2, (200, 2)).astype(np.int8)
    found = mean_differences(sparse.csr_array(dense), values)
    for i in range(2):
        expected = dense[values[:, i] == 1].mean(0) - dense[values[:, i] == 0].mean(0)
        np.testing.assert_allclose(found[i], expected, atol=1e-12)
