"""Absorption rates against planted ones, and the gates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse

from sparse_pipeline.analyze.probes.dense import train_probes
from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.splits import ProbeSplit, split_groups
from sparse_pipeline.analyze.reports.absorption.outcome import FamilyAbsorption, Gates
from sparse_pipeline.analyze.reports.absorption.rates import absorption_rates, carried_share, least_share, unit_codes
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.base import Coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from tests.analyze.hierarchy import Hierarchy, absorbing_coder, hierarchy, true_rates


def measured(
    tree: Hierarchy, coder: Coder, **settings: object
) -> tuple[FamilyAbsorption, ProbeSplit, NDArray[np.int64]]:
    """(the family's absorption, the split, held-out rows)."""
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    w_dec = coder.w_dec.detach().numpy()
    labels = Labels(tuple(f"parent:{i}" for i in range(tree.parents)), tree.labels())
    split = split_groups(np.arange(len(tree.x)), 0)
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
    split = split_groups(np.arange(len(y)), 0)
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
    assert "needs 20" in family.reason


def test_too_few_true_positives() -> None:
    tree = hierarchy(n=3000)
    family, _, _ = measured(tree, absorbing_coder(tree, 0.25), gates=Gates(true_positives=10_000))
    assert family.status == "not evaluable"
    assert "needs 10000" in family.labels[0].status


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


def random_coder(width: int, latents: int, k: int, seed: int) -> Coder:
    generator = torch.Generator().manual_seed(seed)
    return build_coder(TopKConfig(latents=latents, k=k), width, width, tied=True, generator=generator).eval()


@pytest.mark.parametrize("stretched", [False, True])
def test_no_untrained_coder_is_evaluable(stretched: bool) -> None:
    """Labels of large rows: a few random latents tell them apart, so the MCC alone lets an untrained coder through.

    With `stretched` a few dimensions are many times as large as the rest, and the coder standardises them.
    """
    rng = np.random.default_rng(0)
    n, width, names = 4000, 96, ("punctuation", "digit", "capitalised")
    scale = np.where(np.arange(width) < 3, 20.0, 1.0) if stretched else np.ones(width)
    on = rng.random((n, 3)) < [0.15, 0.05, 0.3]
    directions = np.linalg.qr(rng.standard_normal((width, width)))[0][:3]
    x = (on * [14.0, 9.0, 6.0] @ directions + rng.standard_normal((n, width))) * scale
    labels = Labels(names, on.astype(np.int8))
    split = split_groups(np.arange(n), 0)
    rows = torch.from_numpy(x.astype(np.float32))
    probes = train_probes(rows, labels, split)
    without = 0
    for seed, (latents, k) in enumerate([(256, 8), (1024, 16), (1024, 64), (4096, 32)]):
        coder = random_coder(width, latents, k, seed)
        with torch.no_grad():
            codes = sparse.csr_array(coder.encode(rows / torch.from_numpy(scale).float()).dense().numpy())
        w_dec = coder.w_dec.detach().numpy() * scale.astype(np.float32)
        families = absorption_rates(rows, unit_codes(codes, w_dec), w_dec, labels, [(split, probes)])
        for family in families:
            assert family.n_probed == 1
            assert family.status == "not evaluable"
            assert family.full is None
            sparse_probe = family.labels[0].sparse
            if sparse_probe is not None and sparse_probe.mcc >= 0.3:
                without += 1
                assert "of the projection" in family.labels[0].status
    assert without >= 4  # these would have been evaluable, at 0 %, without the gate on the share


def test_carried_share_by_hand() -> None:
    codes = sparse.csr_array(np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 9.0], [4.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    cosines = np.array([0.5, 0.25, 0.9])
    projection = np.array([4.0, 1.0, 8.0, -1.0])
    # Rows 0 and 2: (0.5 + 0.5)/4 and 2/8. In row 1 no main latent fires, and in row 3 there is nothing to carry.
    assert carried_share(projection, codes, cosines, (0, 1)) == pytest.approx(0.25)
    assert carried_share(projection, codes, cosines, ()) == 0.0
    assert least_share(Gates(), 4096, 640) == pytest.approx(4 * np.log(4096) / 640)
    assert least_share(Gates(), 16384, 2304) == 0.05
    assert least_share(Gates(coder_share_of_a=0), 4096, 640) < 0


def test_a_decoder_of_zeros_is_not_evaluable() -> None:
    """A transcoder before its first step writes nothing, whatever its codes say."""
    tree = hierarchy(n=2000)
    coder = absorbing_coder(tree, 0.25)
    with torch.no_grad():
        coder.w_dec.zero_()
    family, _, _ = measured(tree, coder)
    assert family.status == "not evaluable"
    assert "the coder has latents" in family.reason


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
        split = split_groups(np.arange(len(tree.x)), seed)
        splits.append((split, train_probes(tree.x, labels, split)))
    one, three = (absorption_rates(tree.x, unit_codes(codes, w_dec), w_dec, labels, splits[:n])[0] for n in (1, 3))
    assert one.full_by_split == pytest.approx((one.full.value,)) if one.full else False
    assert len(three.full_by_split) == 3
    assert three.full_by_split[0] == pytest.approx(one.full_by_split[0])
    assert three.true_positives > 2.5 * one.true_positives
    assert three.full is not None
    truth = [true_rates(tree, 0.25, split.test).mean() for split, _ in splits]
    assert three.full.value == pytest.approx(np.mean(truth), abs=0.02)
