"""Absorption against a literal, row by row computation of its definition, and against planted rates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse

from sparse_pipeline.analyze.probes.fit import train_probes
from sparse_pipeline.analyze.probes.intervals import estimate, mean_estimate, over_items, over_seeds
from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.splits import Split, split_rows
from sparse_pipeline.analyze.reports.absorption.main_latents import choose_k, k_sparse_probes
from sparse_pipeline.analyze.reports.absorption.rates import FamilyAbsorption, Gates, absorption_rates, unit_codes
from sparse_pipeline.analyze.reports.absorption.rows import decoder_cosines, row_absorption
from sparse_pipeline.analyze.reports.probing.sparse_probes import family_means, mean_differences, sparse_probes
from sparse_pipeline.analyze.sweep.efficiency import Trained, reduction_efficiency
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.base import Coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from tests.planted import Hierarchy, absorbing_coder, hierarchy, true_rates


def literal(a: float, z: NDArray[np.float64], cos: NDArray[np.float64], main: tuple[int, ...]) -> tuple[bool, float]:
    """Both measures of one row, word for word as methods state them, with loops."""
    proj = [z[i] * cos[i] for i in range(len(z))]
    top = max(range(len(z)), key=lambda i: proj[i])
    full = all(z[i] < 1e-8 for i in main) and cos[top] >= 0.025 and a > 0 and proj[top] / a >= 0.4
    candidates = sorted(
        (proj[i] for i in range(len(z)) if i not in main and cos[i] >= 0.1 and proj[i] > 0), reverse=True
    )
    s, m = sum(candidates[:3]), sum(proj[i] for i in main)
    if a <= 0 or m >= a or s / a < 0.4:
        return full, 0.0
    if m <= 0:
        return full, 1.0
    u = min(s, a - m)
    return full, u / (u + m)


def test_rows_equal_the_literal_definition() -> None:
    rng = np.random.default_rng(0)
    n_rows, n_latents = 3000, 12
    z = np.where(rng.random((n_rows, n_latents)) < 0.35, rng.exponential(1.0, (n_rows, n_latents)), 0.0)
    z[:50] = 0  # nothing fires
    cos = rng.uniform(-0.4, 0.9, n_latents)
    cos[3] = 0.05  # counts for full absorption, not for the fraction
    main = (2, 7)
    a = z @ cos * rng.uniform(0.3, 3.0, n_rows) + 0.1 * rng.standard_normal(n_rows)
    result = row_absorption(a, sparse.csr_array(z), cos, main)
    expected = [literal(a[r], z[r], cos, main) for r in range(n_rows)]
    assert result.full.tolist() == [full for full, _ in expected]
    np.testing.assert_allclose(result.fraction, [fraction for _, fraction in expected], atol=1e-12)
    assert 0.02 < result.full.mean() < 0.98
    assert ((result.fraction > 0) & (result.fraction < 1)).sum() > 100
    silent = ~(z[:, main] > 1e-8).any(1)
    assert np.array_equal(result.main_silent, silent)


@pytest.mark.parametrize(
    ("z", "a", "full", "fraction"),
    [
        ([0.0, 1.0, 0.0], 0.8, True, 1.0),  # the absorber alone: cos 0.8, so it carries all of a
        ([1.0, 0.0, 0.0], 1.0, False, 0.0),  # the main latent alone
        ([0.5, 0.6, 0.0], 1.0, False, 0.48 / 0.98),  # shared: u = min(0.48, 0.5)
        ([0.9, 0.9, 0.0], 1.0, False, 0.0 + 0.1 / 1.0),  # u = min(0.72, 0.1)
        ([1.2, 0.9, 0.0], 1.0, False, 0.0),  # main latents already carry all
        ([0.0, 0.4, 0.0], 1.0, False, 0.0),  # too little of a: 0.32 < 0.4
        ([0.0, 0.0, 9.0], 0.4, True, 0.0),  # cos 0.05: enough for full, too little for the fraction
        ([0.0, 1.0, 0.0], -0.5, False, 0.0),  # the row does not lie on the probe's side
        ([0.0, 0.0, 0.0], 1.0, False, 0.0),  # nothing fires
    ],
)
def test_rows_by_hand(z: list[float], a: float, full: bool, fraction: float) -> None:
    result = row_absorption(np.array([a]), sparse.csr_array(np.array([z])), np.array([1.0, 0.8, 0.05]), (0,))
    assert bool(result.full[0]) is full
    assert result.fraction[0] == pytest.approx(fraction)


def test_cosines_and_units() -> None:
    w_dec = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    assert decoder_cosines(w_dec, np.array([0.0, 5.0])).tolist() == pytest.approx([0.8, 0.0, -1.0])
    codes = unit_codes(sparse.csr_array(np.array([[1.0, 0.0, 2.0]])), w_dec, target_scale=3.0)
    assert codes.toarray().tolist() == [[15.0, 0.0, 12.0]]


def test_split_rule() -> None:
    assert choose_k([0.5]) == 1
    assert choose_k([0.5, 0.54, 0.56, 0.9]) == 2  # stops at the first k that does not pay
    assert choose_k([0.5, 0.53]) == 1  # more than 0.03
    assert choose_k([0.5, 0.6, 0.7]) == 3
    assert choose_k([]) == 0


# The planted hierarchy


def measured(tree: Hierarchy, coder: Coder, **settings: object) -> tuple[FamilyAbsorption, Split, NDArray[np.int64]]:
    """(the family's absorption, the split, held-out rows)."""
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    w_dec = coder.w_dec.detach().numpy()
    labels = Labels(tuple(f"parent:{i}" for i in range(tree.parents)), tree.labels())
    split = split_rows(np.arange(len(tree.x)), 0)
    probes = train_probes(tree.x, labels, split)
    (family,) = absorption_rates(
        tree.x,
        unit_codes(codes, w_dec),
        w_dec,
        labels,
        [(split, probes)],
        **settings,  # type: ignore[arg-type]
    )
    return family, split, split.test


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75])
def test_estimated_rate_is_the_true_rate(rate: float) -> None:
    """With splitting ruled out (only the first latent is a main one) the estimate is the truth, parent by parent.

    With the published rule, frequent absorbers are taken for splits, so the estimate may only be lower.
    """
    tree = hierarchy(n=9000, seed=1)
    family, _, test = measured(tree, absorbing_coder(tree, rate))
    truth = true_rates(tree, rate, test)
    assert family.evaluable
    for label, true in zip(family.labels, truth, strict=True):
        assert label.full is not None
        assert label.full_first is not None
        assert label.main_latents[0] == int(label.label[-1])  # the parent's own latent
        assert label.full_first.value == pytest.approx(true, abs=0.01)
        assert label.full.value <= true + 0.01
    assert family.full is not None
    assert family.full_first is not None
    assert family.full.low <= family.full.value <= family.full.high
    assert family.full_first.low <= truth.mean() <= family.full_first.high
    if rate <= 0.25:  # no absorber is frequent enough to look like a split
        assert family.full.value == pytest.approx(truth.mean(), abs=0.01)
        assert family.mean_main_latents == 1
    if rate == 0:
        assert family.full.value == 0
        assert family.full.high > 0  # 0 observed is not 0 for certain


def test_absorbers_are_the_planted_children() -> None:
    tree = hierarchy(n=9000, seed=1)
    family, _, test = measured(tree, absorbing_coder(tree, 0.25))
    seen = np.unique(tree.child[test])
    for p, label in enumerate(family.labels):
        planted = p * tree.children + np.arange(10)
        expected = {tree.parents + child for child in planted.tolist() if child in seen}
        assert {absorber.latent for absorber in label.absorbers} == expected


@pytest.mark.parametrize("kappa", [0.4, 0.6])
def test_fraction_of_a_weakened_parent(kappa: float) -> None:
    """Where children carry κ of the parent's direction, the mean fraction over their rows is about κ·a_c/a_p."""
    tree = hierarchy(n=9000, seed=2)
    family, _, test = measured(tree, absorbing_coder(tree, 0.25, kappa=kappa, bias=0.0), jump=0.5)
    for p, label in enumerate(family.labels):
        assert label.rows is not None
        assert label.fraction is not None
        assert not label.rows.full.any()  # none is silent
        on = test[tree.parent[test] == p]
        has = tree.child[on] >= 0
        absorbs = has & (tree.child[on] % tree.children < 10)
        share = kappa * tree.child_size[on] / tree.parent_size[on]
        expected = np.where(absorbs & (share >= 0.4), share, 0.0).mean()
        assert label.fraction.value == pytest.approx(expected, abs=0.02)


def test_transcoder_form() -> None:
    """A transcoder that writes the features elsewhere: the probe lives in target space, with the same rates."""
    tree = hierarchy(n=9000, seed=1)
    rng = np.random.default_rng(5)
    rotation = np.linalg.qr(rng.standard_normal((tree.x.shape[1],) * 2))[0].astype(np.float32)
    coder = absorbing_coder(tree, 0.25)
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    w_dec = coder.w_dec.detach().numpy() @ rotation * 7.0
    y = tree.x @ torch.from_numpy(rotation) * 7.0
    labels = Labels(tuple(f"parent:{i}" for i in range(3)), tree.labels())
    split = split_rows(np.arange(len(y)), 0)
    probes = train_probes(y, labels, split)
    (family,) = absorption_rates(y, unit_codes(codes, w_dec), w_dec, labels, [(split, probes)], adapted=True)
    assert family.form == "adapted"
    assert family.full is not None
    assert family.full.value == pytest.approx(true_rates(tree, 0.25, split.test).mean(), abs=0.01)


# Gates


def test_weak_probes_are_not_evaluable() -> None:
    tree = hierarchy(n=3000)
    shuffled = dataclasses.replace(tree, parent=np.random.default_rng(0).permutation(tree.parent))
    family, _, _ = measured(shuffled, absorbing_coder(tree, 0.25))
    assert family.status == "not evaluable"
    assert "0 of 3 labels have a dense probe with F1 > 0.6" in family.reason
    assert family.full is None
    assert family.fraction is None
    assert all(label.full is None and label.probe.f1 < 0.6 for label in family.labels)
    assert "F1" in family.labels[0].status


def test_too_few_labels_of_a_family() -> None:
    tree = hierarchy(n=3000)
    family, _, _ = measured(tree, absorbing_coder(tree, 0.25), gates=Gates(labels={"parent": 20}))
    assert family.status == "not evaluable"
    assert "3 of 3 labels" in family.reason
    assert "20 are needed" in family.reason


def test_too_few_true_positives() -> None:
    tree = hierarchy(n=3000)
    family, _, _ = measured(tree, absorbing_coder(tree, 0.25), gates=Gates(true_positives=10_000))
    assert family.status == "not evaluable"
    assert "10000 are needed" in family.labels[0].status


def test_a_coder_without_latents_for_the_labels_is_not_evaluable() -> None:
    """Zero absorption of a coder that knows nothing is no achievement."""
    tree = hierarchy(n=3000)
    width = tree.x.shape[1]
    generator = torch.Generator().manual_seed(0)
    untrained = build_coder(TopKConfig(latents=4, k=2), width, width, tied=True, generator=generator).eval()
    family, _, _ = measured(tree, untrained, gates=Gates(coder_mcc=0.5))
    assert family.status == "not evaluable"
    assert "the coder has latents" in family.reason
    assert (family.n_probed, family.n_evaluable) == (3, 0)
    assert "no latents for it" in family.labels[0].status
    assert family.full is None


def test_a_decoder_of_zeros_is_not_evaluable() -> None:
    """A transcoder before its first step writes nothing, whatever its codes say."""
    tree = hierarchy(n=2000)
    coder = absorbing_coder(tree, 0.25)
    with torch.no_grad():
        coder.w_dec.zero_()
    family, _, _ = measured(tree, coder)
    assert family.status == "not evaluable"
    assert "the coder has latents" in family.reason


# Sparse probing


def test_sparse_probing_of_planted_latents() -> None:
    tree = hierarchy(n=4000)
    coder = absorbing_coder(tree, 0.0)
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    labels = Labels(tuple(f"parent:{i}" for i in range(3)), tree.labels())
    split = split_rows(np.arange(len(tree.x)), 0)
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


def test_absorption_costs_recall_of_the_first_latent() -> None:
    """What the sparse probe loses is what is absorbed: recall of the parent's latent = 1 − rate."""
    tree = hierarchy(n=9000, seed=1)
    coder = absorbing_coder(tree, 0.5)
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    labels = Labels(tuple(f"parent:{i}" for i in range(3)), tree.labels())
    split = split_rows(np.arange(len(tree.x)), 0)
    truth = true_rates(tree, 0.5, split.test)
    for p, result in enumerate(k_sparse_probes(codes, labels, split, max_k=1)):
        assert result.scores is not None
        assert result.scores.recall == pytest.approx(1 - truth[p], abs=0.01)
        assert result.scores.precision > 0.98


# Intervals and efficiency


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        groups = [np.where(rng.random(60) < 0.2, rng.uniform(0.4, 1.0, 60), 0.0) for _ in range(8)]
        found = mean_estimate(groups, rng, 300)
        covered += found.low <= 0.2 * 0.7 <= found.high
    assert covered >= 180


def test_interval_of_nothing_observed() -> None:
    rng = np.random.default_rng(0)
    none = estimate(np.zeros(50), rng)
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.03 < none.high < 0.06  # about 2.5 in 50 by Jeffreys
    assert mean_estimate([np.zeros(50)] * 3, rng).high > 0.005
    assert over_items([2.0], rng).to_dict() == {"value": 2.0, "low": 2.0, "high": 2.0}


def test_interval_over_seeds() -> None:
    assert over_seeds([0.1, 0.2]) is None
    found = over_seeds([1.0, 2.0, 3.0])
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert found.high - found.value == pytest.approx(4.302652729911275 / np.sqrt(3))  # t(0.975; 2)


def runs(
    absorption: list[float | None], fvu: float | None, seconds: float | None, l0: float | None = 16.0
) -> list[Trained]:
    return [Trained(seed, a, fvu, l0, seconds) for seed, a in enumerate(absorption)]


def test_efficiency() -> None:
    before = runs([0.4, 0.5, 0.6], 0.30, 100.0)
    found = reduction_efficiency(before, runs([0.2, 0.25, 0.3], 0.303, 110.0))
    assert found.status == "measured"
    assert found.mean_reduction == pytest.approx(0.5)
    assert found.reduction is not None
    assert found.fvu_cost == pytest.approx(0.01)
    assert found.per_fvu == pytest.approx(50.0)  # 50 % less for 1 % of FVU
    assert found.per_time == pytest.approx(5.0)
    free = reduction_efficiency(before, runs([0.2, 0.25, 0.3], 0.29, 90.0))
    assert (free.per_fvu, free.per_time) == (None, None)


def test_efficiency_refuses_what_does_not_compare() -> None:
    before = runs([0.4, 0.5, 0.6], 0.3, 100.0)
    assert "L0 differs" in reduction_efficiency(before, runs([0.2] * 3, 0.3, 100.0, l0=20.0)).status
    assert "not evaluable" in reduction_efficiency(before, runs([0.2, None, 0.2], 0.3, 100.0)).status
    assert "nothing to reduce" in reduction_efficiency(runs([0.0], 0.3, 1.0), runs([0.0], 0.3, 1.0)).status
    assert "no seed" in reduction_efficiency(before, []).status
    assert "baseline's FVU is 0" in reduction_efficiency(runs([0.4], 0.0, 1.0), runs([0.2], 0.3, 1.0)).status
    assert "baseline's training time is 0" in reduction_efficiency(runs([0.4], 0.3, 0.0), runs([0.2], 0.3, 1.0)).status
    assert "FVU is not known" in reduction_efficiency(before, runs([0.2] * 3, None, 100.0)).status
    assert "L0 is not known" in reduction_efficiency(before, runs([0.2] * 3, 0.3, 100.0, l0=None)).status
    assert "time is not known" in reduction_efficiency(before, runs([0.2] * 3, 0.3, None)).status
    pair = reduction_efficiency(before[:2], runs([0.2, 0.25], 0.3, 100.0))
    assert pair.reduction is None  # two seeds: a mean, no interval
    assert pair.mean_reduction == pytest.approx(0.5)


def test_splits_are_pooled() -> None:
    """Three splits: more true positives, the same rate, and the spread between splits shown."""
    tree = hierarchy(n=6000, seed=1)
    coder = absorbing_coder(tree, 0.25)
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    w_dec = coder.w_dec.detach().numpy()
    labels = Labels(tuple(f"parent:{i}" for i in range(3)), tree.labels())
    splits = []
    for seed in range(3):
        split = split_rows(np.arange(len(tree.x)), seed)
        splits.append((split, train_probes(tree.x, labels, split)))
    one, three = (absorption_rates(tree.x, unit_codes(codes, w_dec), w_dec, labels, splits[:n])[0] for n in (1, 3))
    assert one.full_by_split == pytest.approx((one.full.value,)) if one.full else False
    assert len(three.full_by_split) == 3
    assert three.full_by_split[0] == pytest.approx(one.full_by_split[0])
    assert three.true_positives > 2.5 * one.true_positives
    assert three.full is not None
    truth = [true_rates(tree, 0.25, split.test).mean() for split, _ in splits]
    assert three.full.value == pytest.approx(np.mean(truth), abs=0.02)
