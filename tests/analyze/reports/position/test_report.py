"""The position report of a planted cache: the locked latents are found, and the measures are SciPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.analyze import planted as truth
from tests.analyze.planted import World


def test_position_bias(world: World) -> None:
    found = world.table("position")
    assert tuple(np.flatnonzero(found["bos_biased"])) == truth.BOS_LOCKED
    assert tuple(np.flatnonzero(found["position_biased"])) == (truth.POSITION_LOCKED,)
    assert found["largest_bin"][truth.POSITION_LOCKED] == 4
    assert np.isnan(found["bos_share"][truth.RARE])
    assert np.isnan(found["bos_q"][truth.DEAD])


def test_position_measures_are_scipys(world: World) -> None:
    made, found = world.made, world.table("position")
    keep = world.rows("all")
    position = made.position[keep]
    z = made.z[keep]
    n, n_first = len(z), int((position == 0).sum())
    p = [
        stats.binomtest(int((z[position == 0, i] > 0).sum()), int((z[:, i] > 0).sum()), n_first / n, "greater").pvalue
        for i in range(truth.F)
        if (z[:, i] > 0).sum() >= 50
    ]
    scored = ~np.isnan(np.array(found["bos_p"]))
    np.testing.assert_allclose(np.array(found["bos_p"])[scored], p, rtol=1e-9)
    np.testing.assert_allclose(np.array(found["bos_q"])[scored], stats.false_discovery_control(p), rtol=1e-9)
    for i in (truth.POSITION_LOCKED, 20, 21):
        rest = position > 0
        bins = (position[rest] - 1) * 10 // (truth.CTX - 1)
        fired = z[rest, i] > 0
        observed = np.bincount(bins[fired], minlength=10)
        base = np.bincount(bins, minlength=10) / rest.sum()
        kl = stats.entropy(observed / observed.sum(), base, base=2) - 9 / (2 * observed.sum() * np.log(2))
        assert found["kl"][i] == pytest.approx(kl, abs=1e-9)
        mean = [z[position == q, i].astype(np.float64).mean() for q in range(1, truth.CTX)]
        assert found["spearman"][i] == pytest.approx(stats.spearmanr(mean, np.arange(1, truth.CTX)).statistic, abs=1e-9)
    assert found["mi_excess"][truth.POSITION_LOCKED] > 20 * max(abs(found["mi_excess"][i]) for i in range(20, truth.F))


def test_share_of_position_0_among_the_largest(world: World) -> None:
    made, found = world.made, world.table("position")
    i = truth.BOS_LOCKED[0]
    assert found["bos_share_top100"][i] == 1.0
    # All rows at position 0 are one context; the rest of its list are its other firings, at most a hundred in all.
    others = min(99, len({*np.flatnonzero((made.z[:, i] > 0) & (made.position > 0))}))
    assert found["bos_share_top100_distinct"][i] == pytest.approx(1 / (1 + others))
    assert found["bos_share_top100"][20] == 0.0
