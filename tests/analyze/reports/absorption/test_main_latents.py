"""Main latents: the rule for k, and the probes of planted latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.splits import split_groups
from sparse_pipeline.analyze.reports.absorption.main_latents import choose_k, k_sparse_probes
from tests.analyze.hierarchy import absorbing_coder, hierarchy, true_rates


def test_split_rule() -> None:
    assert choose_k([0.5]) == 1
    assert choose_k([0.5, 0.54, 0.56, 0.9]) == 2  # stops at the first k that does not pay
    assert choose_k([0.5, 0.53]) == 1  # more than 0.03
    assert choose_k([0.5, 0.6, 0.7]) == 3
    assert choose_k([]) == 0


def test_absorption_costs_recall_of_the_first_latent() -> None:
    """What the sparse probe loses is what is absorbed: recall of the parent's latent = 1 − rate."""
    tree = hierarchy(n=9000, seed=1)
    coder = absorbing_coder(tree, 0.5)
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    labels = Labels(tuple(f"parent:{i}" for i in range(3)), tree.labels())
    split = split_groups(np.arange(len(tree.x)), 0)
    truth = true_rates(tree, 0.5, split.test)
    for p, result in enumerate(k_sparse_probes(codes, labels, split, max_k=1)):
        assert result.scores is not None
        assert result.scores.recall == pytest.approx(1 - truth[p], abs=0.01)
        assert result.scores.precision > 0.98
